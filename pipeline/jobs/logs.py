"""What a job has printed, and what it prints next. Reads only."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.jobs.folder import JobFolder

POLL_S = 1.0
LOOKS_PER_QUESTION = 5
"""Files are looked at more often than anybody is asked whether the job has ended."""
BLOCK = 65536
"""Bytes that are read at once from a file's end."""


def log_files(paths: JobFolder) -> list[Path]:
    """Return what the scheduler caught of a job, the oldest first."""
    found = [path for path in paths.logs.glob("*") if path.suffix in (".out", ".err", ".log")]
    return sorted((path for path in found if path.is_file()), key=lambda path: path.stat().st_mtime)


def tail(paths: JobFolder, lines: int) -> str:
    """Return the last lines of all that a job printed."""
    kept: list[bytes] = []
    for path in reversed(log_files(paths)):
        if len(kept) < lines:
            kept = _last_lines(path, lines - len(kept)) + kept
    return b"".join(kept).decode("utf-8", errors="replace")


def follow(
    paths: JobFolder,
    lines: int,
    has_ended: Callable[[], bool],
    pause: Callable[[float], None] = time.sleep,
) -> Iterator[str]:
    """Yield the last lines and then what is added, until the job has ended.

    Args:
        paths: The job's record.
        lines: How many of the last lines to begin with.
        has_ended: Asked before a look at the files, now and then.
        pause: Waits so many seconds.
    """
    offsets = {path: path.stat().st_size for path in log_files(paths)}
    yield tail(paths, lines)
    looks = 0
    while True:
        # asked before the files are read: what it printed last is not lost
        ended = looks % LOOKS_PER_QUESTION == 0 and has_ended()
        looks += 1
        for path in log_files(paths):
            offset = offsets.get(path, 0)
            with path.open("rb") as file:
                file.seek(offset)
                added = file.read()
            offsets[path] = offset + len(added)
            if added:
                yield added.decode("utf-8", errors="replace")
        if ended:
            return
        pause(POLL_S)


def _last_lines(path: Path, lines: int) -> list[bytes]:
    """Return the last lines of a file; reads no more of it than they take."""
    content = b""
    with path.open("rb") as file:
        start = file.seek(0, os.SEEK_END)
        while start > 0 and content.count(b"\n") <= lines:
            size = min(BLOCK, start)
            start = file.seek(start - size)
            content = file.read(size) + content
    return content.splitlines(keepends=True)[-lines:]
