"""A CSV file that names the class of each image: columns `file` and `label`."""

import csv
import posixpath
from pathlib import Path
from typing import Any

from asl_core.data.sources.files import broken_link, shown
from asl_core.errors import InputError

_COLUMNS = ("file", "label")


def read_labels(path: Path) -> dict[str, str]:
    """Return path of an image, with / between -> name of its class; without a class "".

    Raises:
        InputError: The file is not there or cannot be read, lacks a column, is empty, or gives an
            image two classes.
    """
    if gone := broken_link(path):
        raise InputError(f"{shown(path)} is {gone}; restore it or correct labels_file")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return _read(path, csv.reader(file, strict=True))
    except FileNotFoundError:
        raise InputError(
            f"{shown(path)} does not exist; it gives the labels: write it, correct labels_file, or "
            "set labels: folder or none"
        ) from None
    except OSError as error:
        raise InputError(f"{shown(path)} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{shown(path)} is not UTF-8 ({error.reason}); save it as that") from error
    except csv.Error as error:
        raise InputError(f"{shown(path)} is no CSV file ({error}); correct it") from error


def _read(path: Path, rows: Any) -> dict[str, str]:
    header = [name.strip() for name in next(rows, [])]
    for column in _COLUMNS:
        if header.count(column) != 1:
            found = ", ".join(map(shown, header)) or "nothing"
            raise InputError(
                f"{shown(path)} needs one column `{column}`; its first line has {found}"
            )
    at_file, at_label = (header.index(column) for column in _COLUMNS)
    labels: dict[str, str] = {}
    for row in rows:
        if not any(row):
            continue
        if len(row) != len(header):
            raise InputError(
                f"{shown(path)} line {rows.line_num} has {len(row)} fields, its first line "
                f"{len(header)}; correct it"
            )
        name, label = posixpath.normpath(row[at_file].strip()), row[at_label].strip()
        if labels.setdefault(name, label) != label:
            raise InputError(
                f"{shown(path)} line {rows.line_num} gives '{shown(name)}' the label "
                f"'{shown(label)}', an earlier one '{shown(labels[name])}'; keep one of them"
            )
    if not labels:
        raise InputError(f"{shown(path)} has no line below its header; add the images")
    return labels
