"""Parquet files as Hugging Face writes them: encoded images and a label."""

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from asl_core.data.sources.files import item_or_rejected, read_file, require_folder, shown
from asl_core.data.sources.parquet_classes import read_classes
from asl_core.data.sources.parquet_columns import check_columns, distinct_labels, is_absent, rows
from asl_core.data.sources.parquet_files import find_files, open_file
from asl_core.data.sources.source import Item, Rejected, Source, Split, SplitName
from asl_core.errors import InputError
from asl_core.recipes.datasets import Parquet

_NEEDED = "a parquet source is a folder with train.parquet and test.parquet"


def open_parquet(recipe: Parquet, data_root: Path) -> Source:
    """Return the source.

    Raises:
        InputError: A file, a part of it or a column is missing, a type cannot be read, a file is
            no Parquet, or the files do not agree on the classes.
    """
    folder = require_folder(data_root / recipe.path, _NEEDED)
    train, test = _find(folder, "train", recipe), _find_test(folder, recipe)
    files: dict[SplitName, list[Path]] = {"train": train, "test": test}
    classes = read_classes(train, test, recipe)
    return Source(
        splits={
            split: Split(
                sum(open_file(path).metadata.num_rows for path in paths),
                partial(_items, folder, paths, recipe, classes.numbers),
                size=sum(path.stat().st_size for path in paths),
            )
            for split, paths in files.items()
        },
        licence="not stated in the files; see where they come from",
        classes=classes.names,
        notes=classes.notes,
    )


def _find(folder: Path, split: str, recipe: Parquet) -> list[Path]:
    """Return the files of a split, with columns that can be read."""
    paths = find_files(folder, split)
    if not paths:
        raise InputError(f"{folder} has no {split}.parquet and no {split}-*.parquet; {_NEEDED}")
    for path in paths:
        check_columns(path, recipe)
    return paths


def _find_test(folder: Path, recipe: Parquet) -> list[Path]:
    """Return the test files, or those of the validation split where test labels are withheld."""
    validation = find_files(folder, "validation")
    if not find_files(folder, "test") and validation:
        return _find(folder, "validation", recipe)
    test = _find(folder, "test", recipe)
    if validation and not distinct_labels(test, recipe):
        return _find(folder, "validation", recipe)
    return test


def _items(
    folder: Path,
    paths: Sequence[Path],
    recipe: Parquet,
    numbers: Mapping[Path, Mapping[Any, int]],
) -> Iterator[Item | Rejected]:
    image_id = 0
    for path in paths:
        for row, (image, label) in enumerate(rows(path, recipe)):
            name = f"{shown(path.name)} row {row}"
            build = partial(_item, name, image_id, folder, image, label, numbers[path])
            yield item_or_rejected(name, build)
            image_id += 1


def _item(
    name: str, image_id: int, folder: Path, image: Any, label: Any, numbers: Mapping[Any, int]
) -> Item:
    content = _image_bytes(image, folder)
    if is_absent(label):
        raise ValueError(f"has no label: {label!r}")
    if label not in numbers:
        raise ValueError(f"label {label} is not one of 0 to {len(numbers) - 1}")
    return Item(name=name, image_id=image_id, image=content, label=numbers[label])


def _image_bytes(image: Any, folder: Path) -> bytes:
    """Return the bytes in the row, or else those of the file that it names in the folder."""
    path = None
    if isinstance(image, dict):
        image, path = image["bytes"], image.get("path")
    if image:
        return image
    if not path:
        raise ValueError("no image bytes")
    file = Path(os.path.normpath(folder / path))
    if not file.is_relative_to(os.path.normpath(folder)) or not os.path.lexists(file):
        raise ValueError(f"no image bytes, and no such file in the folder: {shown(path)}")
    return read_file(file)
