"""Bring what a stage wrote to where the suite keeps it. Writes under data/, runs/, reports/."""

import errno
import os
import shutil
from pathlib import Path


def publish(made: Path, target: Path) -> None:
    """Move a folder into place; the target is there whole, old or new, but for two renames.

    Across file systems the folder is copied beside the target first.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    incoming = target.with_name(f".{target.name}.incoming")
    outgoing = target.with_name(f".{target.name}.outgoing")
    for leftover in (incoming, outgoing):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        os.rename(made, incoming)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        shutil.copytree(made, incoming)
        shutil.rmtree(made)
    if target.exists():
        os.rename(target, outgoing)
    os.rename(incoming, target)
    shutil.rmtree(outgoing, ignore_errors=True)
