"""Keeps a process that was given up from writing over what its successor does.

A machine that was lost may still run its process; the scheduler has started the job elsewhere.
Every start puts its name into fence.json; who finds another name there stops without a word.
"""

import errno
import json
import os
import secrets
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import SupersededError
from pipeline.jobs.folder import JobFolder
from pipeline.jobs.job import newer_attempt
from pipeline.writing import write_json

PAUSES_S = (0.2, 1.0, 3.0)
"""Between attempts to read a fence."""


@dataclass(frozen=True)
class Fence:
    """The right of one start of a job to write in a folder.

    Attributes:
        file: fence.json of the folder that holds checkpoints, journal and outputs.
        record: The job.
        attempt: Number of the attempt.
        restart: How often the scheduler has requeued it.
        start: Random name of this start.
    """

    file: Path
    record: JobFolder
    attempt: int
    restart: int
    start: str

    @classmethod
    def put_up(cls, file: Path, record: JobFolder, attempt: int, restart: int) -> "Fence":
        """Take a folder over from earlier starts.

        Raises:
            SupersededError: A newer start of the same job is there already.
            OSError: It cannot be read whether there is.
        """
        fence = cls(file, record, attempt, restart, secrets.token_hex(8))
        fence._check_attempts()
        there = _read_patiently(file)
        if there.get("record") == record.fingerprint:
            newest = (there.get("attempt", 0), there.get("restart", 0))
            if newest > (attempt, restart):
                raise SupersededError(f"{record.fingerprint}: start {newest} has taken over")
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {
            "record": record.fingerprint, "attempt": attempt, "restart": restart,
            "start": fence.start, "host": socket.gethostname(), "pid": os.getpid(),
        })  # fmt: skip
        return fence

    def check(self) -> None:
        """Make sure that no newer start has taken over; before everything that is written.

        Raises:
            SupersededError: One has.
            OSError: It cannot be read which start this is; that is no reason to stop for good.
        """
        there = _read_patiently(self.file)
        if there.get("start") != self.start:
            raise SupersededError(
                f"attempt {self.attempt} of {self.record.fingerprint} was given up; attempt "
                f"{there.get('attempt')} on {there.get('host')} goes on"
            )
        self._check_attempts()

    def _check_attempts(self) -> None:
        newer = newer_attempt(self.record, self.attempt)
        if newer is not None:
            raise SupersededError(
                f"attempt {self.attempt} of {self.record.fingerprint} was given up; attempt "
                f"{newer.number} was submitted"
            )


def holder_of(file: Path) -> str | None:
    """Return the fingerprint of the record whose job took a folder over last.

    Raises:
        OSError: It cannot be read.
    """
    return _read_patiently(file).get("record")


def _read_patiently(file: Path) -> dict[str, Any]:
    """Return what a file says, nothing where it is gone or says nothing.

    A network filesystem may fail for a moment.

    Raises:
        OSError: It stays unreadable.
    """
    for pause in (*PAUSES_S, None):
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            return content if isinstance(content, dict) else {}
        except FileNotFoundError:
            return {}
        except OSError as error:
            if pause is None:
                raise OSError(errno.EIO, f"cannot be read ({error})", str(file)) from error
            time.sleep(pause)
        except ValueError:
            if pause is None:
                return {}
            time.sleep(pause)
    raise AssertionError
