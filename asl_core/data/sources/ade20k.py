"""ADE20K's official layout: images and semantic maps."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asl_core.data.samples import IGNORED_LABEL
from asl_core.data.sources.files import read_file, read_json, require_folder, shown
from asl_core.data.sources.label_map import read_label_map, write_label_map
from asl_core.data.sources.listing import ImageFile, Listing, note_of, split_of
from asl_core.data.sources.source import Item, Source, Split, SplitName
from asl_core.errors import InputError
from asl_core.recipes.datasets import Ade20k

_NEEDED = "an ade20k source has images/ and annotations/, each with training/ and validation/"
_FOLDERS: dict[SplitName, str] = {"train": "training", "test": "validation"}
_SCENE_PARSE_CLASSES = 150


def open_ade20k(recipe: Ade20k, data_root: Path) -> Source:
    """Return the source: label 0 becomes 255 (ignored), 1..K become 0..K-1.

    An image's map has its name and .png, in the same folder below annotations/ if there are any.

    Raises:
        InputError: A folder is missing, empty or unreadable, or classes.json is broken.
    """
    folder = require_folder(data_root / recipe.path, _NEEDED)
    classes = _class_names(folder / "classes.json")
    splits: dict[SplitName, Split] = {}
    notes: list[str] = []
    for split, name in _FOLDERS.items():
        splits[split], more = _split(folder, name, len(classes))
        notes += more
    return Source(
        splits=splits,
        licence="images: see where they come from (ADE20K: research and education, no commerce)",
        semantic_classes=classes,
        notes=tuple(notes),
    )


def _split(folder: Path, name: str, num_classes: int) -> tuple[Split, list[str]]:
    """Return a split, and notes on what it leaves out."""
    images, annotations = folder / "images" / name, folder / "annotations" / name
    pictures, drawn = Listing(), Listing()
    pictures.walk(require_folder(images, _NEEDED))
    drawn.walk(require_folder(annotations, _NEEDED))
    # of several files with one name, the PNG
    by_name = sorted(drawn.images, key=lambda file: file.path.suffix.lower() == ".png")
    maps = {_key(file.path, annotations): file for file in by_name}
    keys = [_key(file.path, images) for file in pictures.images]
    unused = [maps[key].path for key in sorted(maps.keys() - set(keys))]
    notes = [*pictures.notes(folder), *drawn.notes(folder)]
    if unused:
        one, many = "semantic map has no image", "semantic maps have no image"
        notes.append(note_of(unused, folder, one, many))
    files = [
        dataclasses.replace(file, problem=file.problem or problem)
        for file, problem in zip(
            pictures.images, _problems(pictures.images, keys, maps, folder), strict=True
        )
    ]

    def build(item_name: str, number: int, path: Path) -> Item:
        return _item(item_name, number, path, maps[keys[number]].path, num_classes)

    split = split_of(files, folder, build)
    size = split.size + sum(maps[key].size for key in set(keys) & maps.keys())
    return dataclasses.replace(split, size=size), notes


def _key(path: Path, folder: Path) -> Path:
    """Return what an image and its map have in common: the path below the split, no suffix."""
    return path.relative_to(folder).with_suffix("")


def _problems(
    images: list[ImageFile], keys: list[Path], maps: dict[Path, ImageFile], root: Path
) -> Iterator[str | None]:
    """Yield for each image what is wrong with its map, as far as their folders tell."""
    owners: dict[Path, Path] = {}
    for image, key in zip(images, keys, strict=True):
        owner = owners.setdefault(key, image.path)
        if key not in maps:
            yield f"has no semantic map: {shown(f'{key}.png')}"
        elif owner != image.path:
            yield f"shares its semantic map with another image: {shown(owner.relative_to(root))}"
        else:
            problem = maps[key].problem
            yield problem and f"its semantic map {problem}"


def _class_names(path: Path) -> tuple[str, ...]:
    """Return the names in {"1": name, ...} or [name, ...]; without the file, "1" to "150"."""
    if not path.exists() and not path.is_symlink():
        return tuple(str(label) for label in range(1, _SCENE_PARSE_CLASSES + 1))
    content: Any = read_json(path)
    if isinstance(content, dict):
        content = [content.get(str(label + 1)) for label in range(len(content))]
    if not isinstance(content, list) or not content or not all(isinstance(n, str) for n in content):
        raise InputError(f'{path} is neither {{"1": name, "2": name, ...}} nor a list of names')
    if len(content) >= IGNORED_LABEL:
        raise InputError(f"{path} has {len(content)} classes; a map of bytes holds at most 254")
    return tuple(map(shown, content))


def _item(name: str, number: int, path: Path, map_path: Path, num_classes: int) -> Item:
    try:
        content = read_file(map_path)
    except OSError as error:
        raise ValueError(f"its semantic map is unreadable: {error.strerror}") from error
    semantic = _labels(read_label_map(content), num_classes)
    height, width = semantic.shape
    return Item(
        name=name,
        image_id=number,
        image=read_file(path),
        size=(height, width),
        semantic=write_label_map(semantic),
    )


def _labels(numbers: NDArray[np.uint8], num_classes: int) -> NDArray[np.uint8]:
    """Return the numbers with 0 moved to 255 and the rest down by one, (H, W).

    255, with which others mark what nobody labelled, stays.
    """
    unlabelled = numbers == IGNORED_LABEL
    largest = numbers.max(where=~unlabelled, initial=0)
    if largest > num_classes:
        raise ValueError(
            f"its semantic map has label {largest}, but there are {num_classes} classes; "
            "name them in classes.json"
        )
    return np.where(unlabelled, numbers, numbers - np.uint8(1))  # wraps 0 to 255
