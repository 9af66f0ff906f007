"""Whether a process that no scheduler knows of works on a run. Reads only."""

import fcntl
import json
import os
import socket
import struct
from pathlib import Path
from typing import Any

from pipeline.jobs.folder import JobFolder
from pipeline.jobs.liveness import is_under_way
from pipeline.jobs.record import read_record

_FLOCK = "hhqqi"
"""Linux's struct flock: type, whence, start, length, pid."""
_FIRST_LINES = 4
"""Of a journal, in which it says where it was written, and whether by a job."""


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
    record = read_record(job.record)
    journal = max(job.journal.glob("attempt-*.jsonl"), default=None)
    if record is None or record.status != "RUNNING" or journal is None:
        return None
    if now - journal.stat().st_mtime > silence_s:
        return None
    if not is_under_way(journal.parent):
        return None
    said = _beginning_of(journal)
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


def _beginning_of(journal: Path) -> list[dict[str, Any]]:
    found = []
    with journal.open(encoding="utf-8") as file:
        for line, _ in zip(file, range(_FIRST_LINES), strict=False):
            try:
                found.append(json.loads(line))
            except ValueError:  # being written
                break
    return found
