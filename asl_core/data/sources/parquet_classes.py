"""One numbering of the classes for all files of a Parquet source."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyarrow import types

from asl_core.data.sources.files import counted, shown
from asl_core.data.sources.parquet_columns import (
    class_names,
    distinct_labels,
    is_text,
    label_type,
)
from asl_core.errors import InputError
from asl_core.recipes.datasets import Parquet

Names = tuple[str, ...]

_MAX_UNNAMED_CLASSES = 10**6


@dataclass(frozen=True)
class Classes:
    """The classes of a source.

    Attributes:
        names: In order of their numbers.
        numbers: File -> what its label column holds -> the class's number.
        notes: What a reader of the results should know, one sentence each.
    """

    names: Names
    numbers: dict[Path, Mapping[Any, int]]
    notes: tuple[str, ...]


def read_classes(train: Sequence[Path], test: Sequence[Path], recipe: Parquet) -> Classes:
    """Return the classes: those that the files name, else what the training labels are.

    Labels that are strings are names, sorted. Files that name the same classes in another order
    are numbered by the names.

    Raises:
        InputError: The files do not agree on the classes, or a file is damaged.
    """
    paths = [*train, *test]
    texts = _are_texts(paths, recipe)
    declared = {path: class_names(path, recipe) for path in paths}
    reference = next((path for path in paths if declared[path]), None)
    if reference is None:
        names = _names_by_labels(train, recipe, texts)
        orders, notes = dict.fromkeys(paths, names), ()
    else:
        names = declared[reference] or ()
        orders, notes = _orders(declared, reference)
    by_name = {name: number for number, name in enumerate(names)}
    if texts:
        _refuse_unknown(paths, recipe, by_name)
        numbers: dict[Path, Mapping[Any, int]] = dict.fromkeys(paths, by_name)
    else:
        by_order = {
            order: {label: by_name[name] for label, name in enumerate(order)}
            for order in set(orders.values())
        }
        numbers = {path: by_order[order] for path, order in orders.items()}
    return Classes(tuple(map(shown, names)), numbers, notes)


def _are_texts(paths: Sequence[Path], recipe: Parquet) -> bool:
    """Return whether labels are strings; a column of nulls alone is like any other."""
    kinds = {path: label_type(path, recipe) for path in paths}
    kinds = {path: kind for path, kind in kinds.items() if not types.is_null(kind)}
    first = next(iter(kinds), None)
    for path, kind in kinds.items():
        if first is not None and is_text(kind) != is_text(kinds[first]):
            raise InputError(
                f"column {recipe.label_column!r} is {kinds[first]} in {first} and {kind} in "
                f"{path}; use files of one release"
            )
    return first is not None and is_text(kinds[first])


def _orders(
    declared: Mapping[Path, Names | None], reference: Path
) -> tuple[dict[Path, Names], tuple[str, ...]]:
    """Return the order in which each file numbers the classes, and notes on those that differ."""
    names = declared[reference] or ()
    for path, own in declared.items():
        if own and set(own) != set(names):
            stray = sorted(set(own) ^ set(names))[0]
            raise InputError(
                f"{reference} and {path} name different classes, '{shown(stray)}' is in one of "
                "them only; use files of one release"
            )
    silent = [path for path, own in declared.items() if own is None]
    other = [path for path, own in declared.items() if own not in (None, names)]
    notes = [
        f"{counted(len(paths), *what)} {shown(reference.name)}, the first {shown(paths[0].name)}."
        for paths, what in (
            (silent, ("file names no classes and is read with those of",
                      "files name no classes and are read with those of")),
            (other, ("file numbers the classes otherwise and is read by the names in",
                     "files number the classes otherwise and are read by the names in")),
        )
        if paths
    ]  # fmt: skip
    return {path: own or names for path, own in declared.items()}, tuple(notes)


def _names_by_labels(train: Sequence[Path], recipe: Parquet, texts: bool) -> Names:
    """Return the training labels, sorted, if they are names; else 0 to the largest of them."""
    labels = distinct_labels(train, recipe)
    if not labels:
        raise InputError(
            f"{train[0]}: column {recipe.label_column!r} has no label; set label_column"
        )
    if texts:
        return tuple(sorted(labels))
    if max(labels) >= _MAX_UNNAMED_CLASSES:
        raise InputError(
            f"{train[0]}: column {recipe.label_column!r} has label {max(labels)}; without names in "
            "the metadata, labels number the classes from 0: renumber them"
        )
    return tuple(str(label) for label in range(max(labels) + 1))


def _refuse_unknown(paths: Sequence[Path], recipe: Parquet, names: Mapping[str, int]) -> None:
    for path in paths:
        unknown = sorted(distinct_labels([path], recipe) - names.keys())
        if unknown:
            raise InputError(
                f"{path} has {counted(len(unknown), 'class', 'classes')} that training lacks, the "
                f"first '{shown(unknown[0])}'; use the same classes in both"
            )
