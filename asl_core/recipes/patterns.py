"""Patterns of file names: photos-{000..012}.tar, {a,b}/*.tar."""

import glob
import os
import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path

_MOST_NAMES = 100_000
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def expand_braces(pattern: str) -> list[str]:
    """Return the names that a pattern stands for, as a shell does: {0..12}, {000..012}, {a,b}.

    Braces with neither a comma nor a range in them are left as they are.

    Raises:
        ValueError: They are more than a hundred thousand, or a range ends before it begins.
    """
    parts, choices, last = [], [], 0
    for match in _BRACES.finditer(pattern):
        alternatives = _alternatives(match[1])
        if alternatives is None:
            continue
        parts.append(pattern[last : match.start()])
        choices.append(alternatives)
        last = match.end()
    parts.append(pattern[last:])
    total = 1
    for alternatives in choices:
        total *= len(alternatives)
    if total > _MOST_NAMES:
        raise ValueError(f"{pattern} stands for {total} names; {_MOST_NAMES} are allowed")
    return ["".join(_woven(parts, chosen)) for chosen in product(*choices)]


def find_files(pattern: str, data_root: Path) -> tuple[Path, ...]:
    """Return the files that a pattern stands for on this machine, each once, in order.

    A name without wildcards is returned whether or not it is there, and so is a pattern that
    nothing matches.
    """
    found: dict[Path, None] = {}
    for name in expand_braces(os.path.expanduser(os.path.expandvars(pattern))):
        path = data_root / name
        matched = sorted(glob.glob(str(path), recursive=True)) if glob.has_magic(name) else []
        found |= dict.fromkeys([Path(each) for each in matched] or [path])
    return tuple(found)


def _alternatives(inside: str) -> range | list[str] | None:
    if match := _RANGE.fullmatch(inside):
        first, last, width = int(match[1]), int(match[2]), len(match[1])
        if last < first:
            raise ValueError(f"{{{inside}}} ends before it begins; write {{{last}..{first}}}")
        if last - first >= _MOST_NAMES:
            return range(last - first + 1)  # only to be counted
        zeros = width if match[1].startswith("0") else 0
        return [f"{number:0{zeros}d}" for number in range(first, last + 1)]
    return inside.split(",") if "," in inside else None


def _woven(parts: list[str], chosen: tuple[object, ...]) -> Iterator[str]:
    for part, choice in zip(parts, chosen, strict=False):
        yield f"{part}{choice}"
    yield parts[-1]
