"""The folder that a dataset is packed into: looked at before, and left whole or empty."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from asl_core.data import layout
from asl_core.errors import InputError


@contextmanager
def written_whole(folder: Path, needed: int) -> Iterator[None]:
    """Make the folder, without a packed dataset in it; remove what an error leaves half-written.

    Args:
        folder: To write into.
        needed: Bytes that will be written, at least.

    Raises:
        InputError: It cannot be written, or the disk is, or will be, too small.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        layout.clear(folder)
        with tempfile.TemporaryFile(dir=folder):
            free = shutil.disk_usage(folder).free
        if free < needed:
            raise InputError(
                f"{folder} has {free / 1e9:.1f} GB of free disk space, and the source "
                f"{needed / 1e9:.1f} GB; make room"
            )
        try:
            yield
        except BaseException:
            layout.clear(folder)
            raise
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written ({error.strerror or error}); make it writable, or room "
            "on its disk"
        ) from error
