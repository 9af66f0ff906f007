"""What is done about images that cannot be used: few are listed, many end the packing."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from asl_core.errors import InputError

_KINDS_NAMED = 3
_NUMBER = re.compile(r"\d+")

Rejections = Sequence[tuple[str, str]]
"""Name and reason of each."""


def refuse_too_many(
    title: str, rejected: Rejections, total: int, allowed_share: float, list_path: Path
) -> None:
    """Return if a split can do without what it lacks; else write the list of that.

    Args:
        title: Of the split, for people.
        rejected: What cannot be used.
        total: Number of images, with these.
        allowed_share: Largest share of them.
        list_path: Where the list goes.

    Raises:
        InputError: More than the allowed share is rejected, or all.
    """
    if not rejected or (len(rejected) < total and len(rejected) / total <= allowed_share):
        return
    _write(list_path, rejected)
    raise InputError(
        f"{title}: {len(rejected)} of {total} images cannot be used (allowed share "
        f"{allowed_share:g}): {_kinds(rejected)}; the first {': '.join(rejected[0])}; all of them "
        f"with their reasons are in {list_path}; restore the files or raise max_rejected_share"
    )


def _kinds(rejected: Rejections) -> str:
    """Return "cannot be decoded (37), the file is empty (2)": reasons without particulars."""
    kinds = Counter(_NUMBER.sub("#", reason.partition(":")[0]) for _, reason in rejected)
    named = [f"{kind} ({count})" for kind, count in kinds.most_common(_KINDS_NAMED)]
    others = len(rejected) - sum(count for _, count in kinds.most_common(_KINDS_NAMED))
    return ", ".join([*named, f"other reasons ({others})"] if others else named)


def _write(path: Path, rejected: Rejections) -> None:
    """Write a line for each, name and reason with a tab between."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{name}\t{reason}\n" for name, reason in rejected)
    path.write_text(text, encoding="utf-8", errors="backslashreplace")
