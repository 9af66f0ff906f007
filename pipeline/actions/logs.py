"""What a job has printed, and what it prints next. Reads only."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.jobs.layout import RecordPaths

POLL_S = 1.0


def log_files(paths: RecordPaths) -> list[Path]:
    """Return what the scheduler caught of a job, the oldest first."""
    found = [path for path in paths.logs.glob("*") if path.suffix in (".out", ".err", ".log")]
    return sorted((path for path in found if path.is_file()), key=lambda path: path.stat().st_mtime)


def tail(paths: RecordPaths, lines: int) -> str:
    """Return the last lines of all that a job printed."""
    text = "".join(path.read_text(encoding="utf-8", errors="replace") for path in log_files(paths))
    kept = text.splitlines(keepends=True)[-lines:]
    return "".join(kept)


def follow(
    paths: RecordPaths,
    lines: int,
    has_ended: Callable[[], bool],
    pause: Callable[[float], None] = time.sleep,
) -> Iterator[str]:
    """Yield the last lines and then what is added, until the job has ended.

    Args:
        paths: The job's record.
        lines: How many of the last lines to begin with.
        has_ended: Asked after each look at the files.
        pause: Waits so many seconds.
    """
    offsets = {path: path.stat().st_size for path in log_files(paths)}
    yield tail(paths, lines)
    while True:
        ended = has_ended()  # asked before the files are read: what it printed last is not lost
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
