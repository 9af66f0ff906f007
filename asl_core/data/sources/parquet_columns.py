"""What the two columns of a Parquet file hold: types that can be read, distinct labels, names."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import types

from asl_core.data.sources.parquet_files import damaged, open_file
from asl_core.errors import InputError
from asl_core.recipes.datasets import Parquet

_ROWS_AT_A_TIME = 256
_LABELS_AT_A_TIME = 2**16


def check_columns(path: Path, recipe: Parquet) -> None:
    """Refuse a file without the two columns, or whose types are not images and labels.

    Raises:
        InputError: It is no Parquet file, or as above.
    """
    schema = open_file(path).schema_arrow
    for column in (recipe.image_column, recipe.label_column):
        found = schema.names.count(column)
        if not found:
            raise InputError(
                f"{path} has no column {column!r}; it has {', '.join(schema.names)}: "
                "set image_column or label_column"
            )
        if found > 1:
            raise InputError(f"{path} has {found} columns {column!r}; keep one of them")
    image, label = schema.field(recipe.image_column).type, label_type(path, recipe)
    if not _is_image(image):
        raise InputError(
            f"{path}: column {recipe.image_column!r} is {image}, neither binary nor struct with "
            "binary bytes; store the encoded image files in it"
        )
    if not (types.is_integer(label) or is_text(label) or types.is_null(label)):
        raise InputError(
            f"{path}: column {recipe.label_column!r} is {label}, neither integers nor strings; "
            "cast it"
        )


def label_type(path: Path, recipe: Parquet) -> Any:
    """Return the Arrow type of the labels; of the values, where they are a dictionary."""
    found: Any = open_file(path).schema_arrow.field(recipe.label_column).type
    return found.value_type if types.is_dictionary(found) else found


def is_text(kind: Any) -> bool:
    """Return whether an Arrow type is one of its strings."""
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _is_image(kind: Any) -> bool:
    if not types.is_struct(kind):
        return _is_binary(kind)
    fields = {field.name: field.type for field in kind}
    path = fields.get("path", pa.string())
    return _is_binary(fields.get("bytes")) and (is_text(path) or types.is_null(path))


def _is_binary(kind: Any) -> bool:
    tests = (types.is_binary, types.is_large_binary, types.is_binary_view,
             types.is_fixed_size_binary)  # fmt: skip
    return kind is not None and any(test(kind) for test in tests)


def distinct_labels(paths: Sequence[Path], recipe: Parquet) -> set[Any]:
    """Return every label of these files once, without those that say that there is none.

    Raises:
        InputError: A file is damaged.
    """
    found: set[Any] = set()
    for path in paths:
        for (labels,) in _batches(path, [recipe.label_column], _LABELS_AT_A_TIME):
            found.update(labels)
    return {label for label in found if not is_absent(label)}


def is_absent(label: int | str | None) -> bool:
    """Return whether a label says that there is none: null, an empty string, below 0."""
    return label is None or (label < 0 if isinstance(label, int) else not label)


def class_names(path: Path, recipe: Parquet) -> tuple[str, ...] | None:
    """Return the names of labels 0, 1, ... in the schema's metadata, if they are there.

    Raises:
        InputError: They are no list of different names.
    """
    metadata = open_file(path).schema_arrow.metadata or {}
    try:
        entry: Any = json.loads(metadata.get(b"huggingface", b"{}"))
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: its metadata 'huggingface' is not JSON ({error}); write the file again"
        ) from error
    for key in ("info", "features", recipe.label_column, "names"):
        entry = entry.get(key) if isinstance(entry, dict) else None
    if entry is None:
        return None
    strings = isinstance(entry, list) and all(isinstance(name, str) for name in entry)
    if not strings or not entry or len(set(entry)) < len(entry):
        raise InputError(
            f"{path}: the class names of {recipe.label_column!r} in its metadata are no list of "
            "different strings; write the file again"
        )
    return tuple(entry)


def rows(path: Path, recipe: Parquet) -> Iterator[tuple[Any, Any]]:
    """Yield image and label of each row as Python objects.

    Raises:
        InputError: The file is damaged.
    """
    for images, labels in _batches(
        path, [recipe.image_column, recipe.label_column], _ROWS_AT_A_TIME
    ):
        yield from zip(images, labels, strict=True)


def _batches(path: Path, columns: list[str], count: int) -> Iterator[list[list[Any]]]:
    """Yield these columns as Python objects, some rows at a time."""
    file, done = open_file(path), 0
    try:
        for batch in file.iter_batches(count, columns=columns):
            yield [batch.column(name).to_pylist() for name in columns]
            done += batch.num_rows
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise damaged(path, f"{error}, after {done} rows") from error
    if done != file.metadata.num_rows:
        raise damaged(path, f"it has {done} of {file.metadata.num_rows} rows")
