"""Whether a process that no scheduler knows of works on a run. Reads only."""

import fcntl
import os
import socket
import struct
from pathlib import Path

from pipeline.jobs.folder import JobFolder
from pipeline.jobs.journal import first_lines
from pipeline.jobs.liveness import is_under_way

_FLOCK = "hhqqi"
"""Linux's struct flock: type, whence, start, length, pid."""


def host_of_local_run(job: JobFolder, now: float, silence_s: float) -> str | None:
    """Return the machine on which `dvc repro` makes a run just now, None where none does.

    On this machine the run's lock tells. A lock of another machine may not show here: there a
    journal that has grown within `silence_s` tells.

    Args:
        job: Where it would work.
        now: Seconds since 1970.
        silence_s: A journal that has not grown for so long is no sign of life.
    """
    here = socket.gethostname()
    if is_locked(job.lock):
        return here
    journal = max(job.journal.glob("attempt-*.jsonl"), default=None)
    if journal is None or now - journal.stat().st_mtime > silence_s:
        return None
    if not is_under_way(journal.parent):
        return None
    said = first_lines(journal)
    host = next((str(line["host"]) for line in said if line.get("kind") == "open"), here)
    by_job = any("job.id" in line.get("values", {}) for line in said)
    return None if by_job or host == here else host


def is_locked(path: Path) -> bool:
    """Say whether another process holds the lock of a file; takes nothing."""
    try:
        with path.open("rb") as file:
            asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            answer = fcntl.fcntl(file, fcntl.F_GETLK, asked)
    except OSError:
        return False
    return struct.unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK
