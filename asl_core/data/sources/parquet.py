"""Parquet files as Hugging Face writes them: encoded images and a label."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from asl_core.data.sources.files import require_folder
from asl_core.data.sources.source import Item, Rejected, Source, Split, SplitName
from asl_core.errors import InputError
from asl_core.recipes.datasets import Parquet

_ROWS_AT_A_TIME = 256
_NEEDED = "a parquet source is a folder with train.parquet and test.parquet"


def open_parquet(recipe: Parquet, data_root: Path) -> Source:
    """Return the source.

    Raises:
        InputError: A file or a column is missing, or a file is no Parquet.
    """
    folder = require_folder(data_root / recipe.path, _NEEDED)
    files: dict[SplitName, list[Path]] = {
        "train": _find(folder, ("train",)),
        "test": _find_test(folder, recipe),
    }
    for path in (path for paths in files.values() for path in paths):
        _check_columns(path, recipe)
    classes = _class_names(files["train"], recipe)
    return Source(
        splits={
            split: Split(
                sum(_open(path).metadata.num_rows for path in paths),
                lambda paths=paths: _rows(paths, recipe, len(classes)),
            )
            for split, paths in files.items()
        },
        licence="not stated in the files; see where they come from",
        classes=classes,
    )


def _find(folder: Path, names: tuple[str, ...]) -> list[Path]:
    """Return NAME.parquet or else NAME-*.parquet, of the first name that is there."""
    for name in names:
        whole, parts = folder / f"{name}.parquet", sorted(folder.glob(f"{name}-*.parquet"))
        if whole.is_file() or parts:
            return [whole] if whole.is_file() else parts
    raise InputError(f"{folder} has no {names[0]}.parquet and no {names[0]}-*.parquet; {_NEEDED}")


def _find_test(folder: Path, recipe: Parquet) -> list[Path]:
    """Return the test files, or those of the validation split where test labels are withheld."""
    test = _find(folder, ("test", "validation"))
    try:
        validation = _find(folder, ("validation",))
    except InputError:
        return test
    for path in test:
        _check_columns(path, recipe)
    return validation if _largest_label(test, recipe) < 0 else test


def _largest_label(paths: list[Path], recipe: Parquet) -> int:
    labels = [_open(path).read([recipe.label_column])[0].to_numpy() for path in paths]
    return int(max(np.nanmax(column, initial=-1) for column in labels))


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path} is not a readable Parquet file ({error}); restore it") from error


def _check_columns(path: Path, recipe: Parquet) -> None:
    schema = _open(path).schema_arrow
    for column in (recipe.image_column, recipe.label_column):
        if column not in schema.names:
            raise InputError(
                f"{path} has no column {column!r}; it has {', '.join(schema.names)}: "
                "set image_column or label_column"
            )
    image = schema.field(recipe.image_column).type
    if not pa.types.is_struct(image) or image.get_field_index("bytes") < 0:
        raise InputError(
            f"{path}: column {recipe.image_column!r} is {image}, not struct with bytes"
        )


def _class_names(paths: list[Path], recipe: Parquet) -> tuple[str, ...]:
    """Return the names of the schema's metadata, or else 0 to the largest label."""
    metadata = _open(paths[0]).schema_arrow.metadata or {}
    features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    names = features.get(recipe.label_column, {}).get("names")
    if names:
        return tuple(names)
    return tuple(str(label) for label in range(max(_largest_label(paths, recipe), 0) + 1))


def _rows(paths: list[Path], recipe: Parquet, num_classes: int) -> Iterator[Item | Rejected]:
    number = 0
    for path in paths:
        columns = [recipe.image_column, recipe.label_column]
        for batch in _open(path).iter_batches(_ROWS_AT_A_TIME, columns=columns):
            for row in batch.to_pylist():
                image, label = row[recipe.image_column], row[recipe.label_column]
                yield _row(f"{path.name} row {number}", number, image, label, num_classes)
                number += 1


def _row(
    name: str, number: int, image: dict[str, bytes] | None, label: int | None, num_classes: int
) -> Item | Rejected:
    if image is None or not image["bytes"]:
        return Rejected(name, "no image bytes")
    if label is None or not 0 <= label < num_classes:
        return Rejected(name, f"label {label} is not one of 0 to {num_classes - 1}")
    return Item(name=name, image_id=number, image=image["bytes"], label=label)
