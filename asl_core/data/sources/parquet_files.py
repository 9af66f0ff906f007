"""Which Parquet files make up a split, and whether they are all there."""

import re
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from asl_core.data.sources.files import broken_link, counted, shown
from asl_core.errors import InputError

_OF = re.compile(r"-(\d+)-of-(\d+)(?:[-.].+)?\.parquet")
"""train-00001-of-00003.parquet; older ones have a digest before the suffix."""


def find_files(folder: Path, split: str) -> list[Path]:
    """Return SPLIT.parquet, or else all of SPLIT-*.parquet, in order; empty if there are none.

    Raises:
        InputError: It is no file, a part is missing, or there is more than one set of files.
    """
    whole, parts = folder / f"{split}.parquet", sorted(folder.glob(f"{split}-*.parquet"))
    found = [path for path in (whole, *parts) if path.exists() or path.is_symlink()]
    for path in found:
        if gone := broken_link(path):
            raise InputError(f"{path} is {gone}; restore it")
        if not path.is_file():
            raise InputError(f"{path} is no file; replace it by the Parquet file of that name")
    if whole in found and parts:
        raise InputError(
            f"{folder} has both {whole.name} and {parts[0].name}; keep the one or the other"
        )
    _check_parts(folder, split, parts)
    return found


def _check_parts(folder: Path, split: str, parts: Sequence[Path]) -> None:
    """Refuse an incomplete set of parts whose names say how many there are, and two sets."""
    matches = {path: _OF.fullmatch(path.name[len(split) :]) for path in parts}
    numbered = {path: (int(m[1]), int(m[2])) for path, m in matches.items() if m}
    if not numbered:
        return
    first = next(iter(numbered))
    for path in parts:
        if path not in numbered or numbered[path][1] != numbered[first][1]:
            raise InputError(f"{folder} has {first.name} and {path.name}; keep one set of parts")
    total, numbers = numbered[first][1], [number for number, _ in numbered.values()]
    for path, (number, _) in numbered.items():
        if numbers.count(number) > 1:
            raise InputError(f"{folder} has part {number} of {split} twice, once as {path.name}")
    missing = sorted(set(range(total)) - set(numbers))
    if missing:
        width = len(matches[first][2])  # type: ignore[index]
        raise InputError(
            f"{folder} lacks {counted(len(missing), 'part')} of {total} of {split}, the first "
            f"{split}-{missing[0]:0{width}d}-of-{total:0{width}d}.parquet; download what is missing"
        )


def open_file(path: Path) -> pq.ParquetFile:
    """Open a file; nothing but its schema and statistics is read.

    Raises:
        InputError: It is no Parquet file or cannot be read.
    """
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError, UnicodeEncodeError) as error:  # the last: of its name
        raise damaged(path, str(error)) from error


def damaged(path: Path, reason: str) -> InputError:
    """Return what to raise where a file cannot be read."""
    line = " ".join(reason.split())
    return InputError(f"{shown(path)} is not a readable Parquet file ({line}); restore it")
