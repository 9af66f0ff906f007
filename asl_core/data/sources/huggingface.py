"""A dataset of the package `datasets`, as its `save_to_disk` leaves it, or fetched by its name."""

import dataclasses
import threading
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asl_core.data.sources.files import read_file, require_folder, shown
from asl_core.data.sources.source import Source
from asl_core.data.sources.undivided import (
    MAX_FILE_BYTES,
    Found,
    divide,
    keep_division,
    numbered,
)
from asl_core.errors import InputError
from asl_core.recipes.undivided import HuggingFace

_NEEDED = "a huggingface source is a folder that save_to_disk wrote"
_TEST_SPLITS = ("test", "validation", "valid", "val", "dev")


def open_hugging_face(recipe: HuggingFace, data_root: Path) -> Source:
    """Return the source; all images are read once, to order and divide them by their content.

    Raises:
        InputError: The package is missing, the folder is none of its datasets, the name cannot be
            fetched, or a column or split is missing or of another type.
    """
    try:
        import datasets
    except ImportError:
        raise InputError(
            "source huggingface needs the package datasets: pip install 'asl-pipe[huggingface]'"
        ) from None
    title = f"huggingface {shown(recipe.path or recipe.name or '')}"
    opened = _fetch(recipe, datasets) if recipe.path is None else _load(recipe, data_root, datasets)
    several = isinstance(opened, datasets.DatasetDict)
    whole: dict[str, Any] = {str(k): v for k, v in opened.items()} if several else {"train": opened}
    train, test, left_out = _choose_splits(recipe, whole, title)
    chosen = {name: whole[name] for name in (train, test) if name is not None}
    for name, split in chosen.items():
        _check_columns(recipe, split, f"{title} {name}", datasets)
    labels = {name: _labels(recipe, split, datasets) for name, split in chosen.items()}
    together = [label for each in labels.values() for label in each]
    declared = _declared(recipe, chosen[train], datasets)
    numbers, classes = numbered(together, declared)
    parts = np.split(numbers, np.cumsum([len(each) for each in labels.values()])[:-1])
    notes = (f"Splits that are not used: {', '.join(left_out)}.",) if left_out else ()
    found = [
        _found(recipe, name, split, part, datasets)
        for (name, split), part in zip(chosen.items(), parts, strict=True)
    ]
    names = classes if recipe.labelled else None
    source = (
        divide(recipe, found[0], names, title)
        if test is None
        else keep_division(recipe, found[0], found[1], names, title)
    )
    return dataclasses.replace(source, notes=(*source.notes, *notes))


def _load(recipe: HuggingFace, data_root: Path, datasets: Any) -> Any:
    folder = recipe.folder(data_root)
    assert folder is not None
    require_folder(folder, _NEEDED)
    try:
        return datasets.load_from_disk(str(folder))
    except Exception as error:  # of Arrow, of JSON, of files, as whatever is broken leads to
        raise InputError(
            f"{shown(folder)} cannot be read as a dataset ({_line(error)}); {_NEEDED}"
        ) from error


def _fetch(recipe: HuggingFace, datasets: Any) -> Any:
    try:
        return datasets.load_dataset(recipe.name, recipe.config, revision=recipe.revision)
    except Exception as error:  # of the network, of the hub, of the dataset's files
        raise InputError(
            f"dataset {recipe.name} at {recipe.revision} cannot be fetched ({_line(error)}); "
            "correct name, config and revision, or save_to_disk where there is a network, and give "
            "its path"
        ) from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _choose_splits(
    recipe: HuggingFace, whole: Mapping[str, Any], title: str
) -> tuple[str, str | None, list[str]]:
    """Return the names of the splits to train and to test on, and of those that are not used."""
    names = list(whole)
    for wanted in (recipe.train_split, recipe.test_split):
        if wanted is not None and wanted not in whole:
            raise InputError(f"{title} has no split {wanted!r}; it has {', '.join(names)}")
    train = recipe.train_split or ("train" if "train" in whole or len(names) > 1 else names[0])
    if train not in whole:
        raise InputError(
            f"{title} has no split train; set train_split to one of {', '.join(names)}"
        )
    others = [name for name in _TEST_SPLITS if name in whole and name != train]
    if recipe.labelled:  # those whose labels are withheld test nothing
        others = [name for name in others if _has_labels(recipe, whole[name])] or others
    test = recipe.test_split or next(iter(others), None)
    return train, test, [name for name in names if name not in (train, test)]


def _has_labels(recipe: HuggingFace, split: Any) -> bool:
    column = recipe.label_column
    if column not in split.column_names:
        return False
    return any(label not in (None, -1, "") for label in split.select_columns([column])[:][column])


def _check_columns(recipe: HuggingFace, split: Any, title: str, datasets: Any) -> None:
    columns = {"image_column": recipe.image_column, "label_column": recipe.label_column}
    for option, column in columns.items():
        if column is not None and column not in split.column_names:
            raise InputError(
                f"{title} has no column {column!r}; it has {', '.join(split.column_names)}: set "
                f"{option}"
            )
    image = split.features[recipe.image_column]
    plain = isinstance(image, datasets.Value) and image.dtype in ("binary", "large_binary")
    packed = isinstance(image, dict) and "bytes" in image
    if not (isinstance(image, datasets.Image) or plain or packed):
        raise InputError(
            f"{title}: column {recipe.image_column!r} is {_kind(image)}, neither images nor bytes; "
            "set image_column"
        )
    if recipe.label_column is None:
        return
    label = split.features[recipe.label_column]
    texts = isinstance(label, datasets.Value) and label.dtype in ("string", "large_string")
    whole = isinstance(label, datasets.Value) and label.dtype.lstrip("u").startswith("int")
    if not (isinstance(label, datasets.ClassLabel) or texts or whole):
        raise InputError(
            f"{title}: column {recipe.label_column!r} is {_kind(label)}, neither classes nor "
            "integers nor strings; set label_column"
        )


def _kind(feature: Any) -> str:
    return str(getattr(feature, "dtype", type(feature).__name__))


def _declared(recipe: HuggingFace, split: Any, datasets: Any) -> list[str]:
    """Return the classes that the dataset names, whether or not an image has them."""
    feature = split.features.get(recipe.label_column)
    return list(feature.names or ()) if isinstance(feature, datasets.ClassLabel) else []


def _labels(recipe: HuggingFace, split: Any, datasets: Any) -> list[str | None]:
    """Return the name of each image's class, None where it has none."""
    column = recipe.label_column
    if column is None:
        return [None] * len(split)
    values = split.with_format(None).select_columns([column])[:][column]
    feature = split.features[column]
    names = feature.names if isinstance(feature, datasets.ClassLabel) else None
    return [_name(value, names) for value in values]


def _name(value: int | str | None, names: list[str] | None) -> str | None:
    if value is None or (isinstance(value, int) and value < 0):
        return None
    return names[value] if names is not None and isinstance(value, int) else str(value)


def _found(
    recipe: HuggingFace, name: str, split: Any, labels: NDArray[np.int64], datasets: Any
) -> Found:
    """Return the images of a split, unread."""
    rows = split.with_format(None).select_columns([recipe.image_column])
    if isinstance(split.features[recipe.image_column], datasets.Image):
        rows = rows.cast_column(recipe.image_column, datasets.Image(decode=False))
    read = partial(_read, rows, recipe, threading.Lock())
    return Found(count=len(rows), name=lambda row: f"{name} row {row}", read=read, labels=labels)


def _read(rows: Any, recipe: HuggingFace, lock: threading.Lock, row: int) -> bytes:
    """Return the image's file, which is in the row.

    Raises:
        OSError: A file that the row names instead cannot be read.
        ValueError: It is not there, or too large.
    """
    with lock:  # that rows can be read by several threads is said nowhere
        image = rows[row][recipe.image_column]
    path = None
    if isinstance(image, dict):
        image, path = image["bytes"], image.get("path")
    if image is None and path is not None and recipe.name is not None:  # where fetching put it
        image = read_file(Path(path))
    if image is None:
        raise ValueError("no image bytes in the row")
    if len(image) > MAX_FILE_BYTES:
        raise ValueError(f"has more than {MAX_FILE_BYTES} bytes: {len(image)}")
    return image
