"""Looking for files, with errors that name what is missing."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from asl_core.data.sources.source import Item, Rejected
from asl_core.errors import InputError


def shown(name: Path | str) -> str:
    r"""Return a name as one printable line of valid text, different for different names.

    What is no UTF-8 becomes \xff, control characters and backslashes their escapes.
    """
    return "".join(map(_printable, str(name)))


def _printable(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # how Python holds a byte of a file name that is no UTF-8
        return f"\\x{code - 0xDC00:02x}"
    if character.isprintable() and character != "\\":
        return character
    return character.encode("unicode_escape").decode("ascii")


def counted(count: int, noun: str, plural: str = "") -> str:
    """Return "1 file", "2 files"."""
    return f"{count} {noun if count == 1 else plural or f'{noun}s'}"


def require_folder(folder: Path, needed_for: str) -> Path:
    """Return the folder.

    Raises:
        InputError: It does not exist, is no folder, is empty, or cannot be read.
    """
    if gone := broken_link(folder):
        raise InputError(f"{shown(folder)} is {gone}; {needed_for}")
    try:
        if not folder.exists():
            raise InputError(f"{shown(folder)} does not exist; {needed_for}")
        if not folder.is_dir():
            raise InputError(f"{shown(folder)} is not a folder; {needed_for}")
        empty = next(folder.iterdir(), None) is None
    except OSError as error:
        raise InputError(
            f"{shown(folder)} cannot be read ({error.strerror}); make it readable"
        ) from error
    if empty:
        raise InputError(f"{shown(folder)} is empty; {needed_for}")
    return folder


def broken_link(path: Path) -> str | None:
    """Return what a symbolic link that leads nowhere is, in words; None for anything else."""
    if not os.path.islink(path) or os.path.exists(path):
        return None
    try:
        path.stat()
    except FileNotFoundError:
        return f"a link to {shown(os.readlink(path))}, which does not exist"
    except OSError as error:  # in a circle, or past a folder that may not be entered
        return f"a link to {shown(os.readlink(path))}, which leads nowhere ({error.strerror})"
    return None


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


def read_file(path: Path) -> bytes:
    """Return the content of a file.

    Raises:
        OSError: It cannot be read.
        ValueError: It is a link to nothing, or no file with a content: reading a pipe would wait.
    """
    if gone := broken_link(path):
        raise ValueError(f"is {gone}")
    if not path.is_file():
        path.stat()  # says why, where it cannot be looked at
        raise ValueError("is no regular file")
    return path.read_bytes()


def item_or_rejected(name: str, build: Callable[[], Item]) -> Item | Rejected:
    """Return what `build` makes, or the reason why a file could not be read or used."""
    try:
        return build()
    except OSError as error:
        return Rejected(name, f"unreadable: {error.strerror or error}")
    except ValueError as error:
        return Rejected(name, str(error))
