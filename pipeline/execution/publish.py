"""Bring what a stage wrote to where the suite keeps it. Writes under data/, runs/, reports/."""

import errno
import os
import shutil
from pathlib import Path


def publish(made: Path, target: Path, *, keep: bool = False) -> None:
    """Move a folder into place; the target is there whole, old or new, but for two renames.

    Across file systems the folder is copied beside the target first.

    Args:
        made: The folder.
        target: Its place.
        keep: It stays where it was, too; its files are the same ones where the system can do that.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    incoming = target.with_name(f".{target.name}.incoming")
    outgoing = target.with_name(f".{target.name}.outgoing")
    for leftover in (incoming, outgoing):
        shutil.rmtree(leftover, ignore_errors=True)
    if keep:
        shutil.copytree(made, incoming, copy_function=_link_or_copy)
    else:
        _move(made, incoming)
    if target.exists():
        os.rename(target, outgoing)
    os.rename(incoming, target)
    shutil.rmtree(outgoing, ignore_errors=True)


def _move(made: Path, target: Path) -> None:
    try:
        os.rename(made, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        shutil.copytree(made, target)
        shutil.rmtree(made)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
