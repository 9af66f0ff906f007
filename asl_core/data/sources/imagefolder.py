"""A folder for each class, as ImageNet is kept."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from asl_core.data.sources.files import item_or_rejected, require_folder, visible_files
from asl_core.data.sources.source import Item, Rejected, Source, Split
from asl_core.errors import InputError
from asl_core.recipes.datasets import ImageFolder

_NEEDED = "an imagefolder source has train/<class>/* and val/<class>/*"


def open_image_folder(recipe: ImageFolder, data_root: Path) -> Source:
    """Return the source; the classes are the sorted folders of train/.

    Raises:
        InputError: A folder is missing or empty, or val/ has a class that train/ lacks.
    """
    folder = require_folder(data_root / recipe.path, _NEEDED)
    train = require_folder(folder / "train", _NEEDED)
    validation = require_folder(folder / "val", _NEEDED)
    classes = _class_folders(train)
    unknown = sorted(set(_class_folders(validation)) - set(classes))
    if unknown:
        raise InputError(
            f"{validation} has {len(unknown)} class folders that {train} lacks, "
            f"the first {unknown[0]!r}; use the same classes in both"
        )
    return Source(
        splits={"train": _split(train, classes), "test": _split(validation, classes)},
        licence="not stated in the folder; see where the images come from",
        classes=classes,
    )


def _class_folders(folder: Path) -> tuple[str, ...]:
    classes = sorted(
        path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
    )
    if not classes:
        raise InputError(f"{folder} has no class folders; {_NEEDED}")
    return tuple(classes)


def _split(folder: Path, classes: tuple[str, ...]) -> Split:
    files = [
        (path, label)
        for label, name in enumerate(classes)
        if (folder / name).is_dir()
        for path in visible_files(folder / name)
    ]
    return Split(len(files), lambda: _items(folder, files))


def _items(folder: Path, files: list[tuple[Path, int]]) -> Iterator[Item | Rejected]:
    for number, (path, label) in enumerate(files):
        name = str(path.relative_to(folder.parent))
        yield item_or_rejected(name, partial(_item, name, number, path, label))


def _item(name: str, number: int, path: Path, label: int) -> Item:
    return Item(name=name, image_id=number, image=path.read_bytes(), label=label)
