"""Any folder of images, or several, with or without labels."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from asl_core.data.sources.files import counted, require_folder, shown
from asl_core.data.sources.labels_csv import read_labels
from asl_core.data.sources.source import Source
from asl_core.data.sources.tree import Tree
from asl_core.data.sources.undivided import MAX_FILE_BYTES, Found, divide, numbered
from asl_core.errors import InputError
from asl_core.recipes.undivided import Images

_NEEDED = "an images source is a folder with images in it or below"


def open_images(recipe: Images, data_root: Path) -> Source:
    """Return the source; all images are read once, to divide them by their content.

    Raises:
        InputError: A folder is missing, empty or unreadable, there is no image, or the file of the
            labels is wrong.
    """
    roots = [require_folder(folder, _NEEDED) for folder in recipe.folders(data_root)]
    labels_file = recipe.file_of_labels(data_root) if recipe.labels == "csv" else None
    unseen = frozenset() if labels_file is None else frozenset((str(labels_file),))
    tree = Tree(roots, recipe.include, recipe.exclude, unseen)
    tree.walk()
    labels, classes, notes = _labels(recipe, tree, labels_file)
    prefixes = _prefixes(roots, recipe.paths)

    def name(position: int) -> str:
        image = tree.images[position]
        return shown(f"{prefixes[image.root]}{image.path}")

    def read(position: int) -> bytes:
        return tree.read(tree.images[position])

    found = Found(
        count=len(tree.images),
        name=name,
        read=read,
        labels=labels,
        problems=_problems(tree),
        size=sum(image.size for image in tree.images),
        notes=(*tree.notes(), *notes),
    )
    return divide(recipe, found, classes, f"images in {', '.join(map(shown, recipe.paths))}")


def _prefixes(roots: Sequence[Path], given: Sequence[str]) -> list[str]:
    """Return what stands before the names of images in each folder, so that all differ."""
    if len(roots) == 1:
        return [""]
    own = [root.name for root in roots]
    return [f"{name}/" for name in (own if len(set(own)) == len(own) else given)]


def _problems(tree: Tree) -> dict[int, str]:
    """Return why images cannot be used, as far as their folders tell, by position."""
    found: dict[int, str] = {}
    for position, image in enumerate(tree.images):
        if image in tree.problems:
            found[position] = tree.problems[image]
        elif image.size > MAX_FILE_BYTES:
            found[position] = f"has more than {MAX_FILE_BYTES} bytes: {image.size}"
    return found


def _labels(
    recipe: Images, tree: Tree, labels_file: Path | None
) -> tuple[NDArray[np.int64], tuple[str, ...] | None, tuple[str, ...]]:
    """Return the class of each image, the names of the classes, and notes."""
    if recipe.labels == "none":
        return np.full(len(tree.images), -1, dtype=np.int64), None, ()
    if labels_file is None:
        parts = (image.path.partition("/") for image in tree.images)
        return *numbered([folder if below else None for folder, _, below in parts]), ()
    by_file = read_labels(labels_file)
    labels = [by_file.get(image.path) for image in tree.images]
    unused = list(by_file.keys() - {image.path for image in tree.images})
    if len(unused) == len(by_file):
        raise InputError(
            f"{shown(labels_file)}: none of its files is an image in {shown(tree.roots[0])}, the "
            f"first '{shown(next(iter(by_file)))}'; `file` is the path from there, with / between"
        )
    notes = ()
    if unused:
        one, many = "file in the list of labels is", "files in the list of labels are"
        rows = counted(len(unused), one, many)
        notes = (f"{rows} no image that is packed, the first {shown(min(unused))}.",)
    return *numbered(labels), notes
