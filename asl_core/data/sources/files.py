"""Looking for files, with errors that name what is missing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from asl_core.data.sources.source import Item, Rejected
from asl_core.errors import InputError


def require_folder(folder: Path, needed_for: str) -> Path:
    """Return the folder.

    Raises:
        InputError: It does not exist, is no folder, or is empty.
    """
    if not folder.exists():
        raise InputError(f"{folder} does not exist; {needed_for}")
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; {needed_for}")
    if next(folder.iterdir(), None) is None:
        raise InputError(f"{folder} is empty; {needed_for}")
    return folder


def visible_files(folder: Path) -> list[Path]:
    """Return the files of a folder in sorted order, without hidden ones."""
    return sorted(
        path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")
    )


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        InputError: The file is not there or cannot be read, is not JSON, or names a key of an
            object twice.
    """
    try:
        return json.loads(path.read_bytes(), object_pairs_hook=_unique_keys)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; restore the file") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except RecursionError:
        raise InputError(f"{path} is nested too deeply; restore the file") from None
    except ValueError as error:  # not JSON, not UTF-8, or an integer of thousands of digits
        reason = str(error).partition(";")[0]
        raise InputError(f"{path} is not JSON ({reason}); restore the file") from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object; of a key that stands there twice, json would silently take the last."""
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object has the key {twice!r} twice")
    return made


def item_or_rejected(name: str, build: Callable[[], Item]) -> Item | Rejected:
    """Return what `build` makes, or the reason why a file could not be read or used."""
    try:
        return build()
    except OSError as error:
        return Rejected(name, f"unreadable: {error.strerror or error}")
    except ValueError as error:
        return Rejected(name, str(error))
