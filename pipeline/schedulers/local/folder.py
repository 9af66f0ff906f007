"""The pool's files under `.asl/pool`: jobs, their environments, locks.

`jobs/<id>.json` is changed by whoever holds `lock`, whole or not at all. A job's environment is
what its submitter had; it may hold credentials, is readable by its owner alone, and goes when the
job has ended.
"""

import contextlib
import json
import os
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from pipeline.schedulers.local.jobs import PoolJob, as_document, from_document
from pipeline.schedulers.local.locks import locked, try_lock
from pipeline.schedulers.port import SchedulerError
from pipeline.writing import write_bytes, write_json

LOCK_S = 60.0

_NUMBER = "number"
"""Has the last number that was given, which no later job gets."""


class PoolFolder:
    """The files of a project's pool; nothing is made before something is written.

    Args:
        folder: `.asl/pool`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()

    def locked(self) -> AbstractContextManager[None]:
        """Hold the pool's lock for the duration of a block.

        Raises:
            SchedulerError: Another process has it for a minute.
            OSError: It cannot be taken here.
        """
        for name in ("jobs", "environment", "locks", "log"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        return locked(self.folder / "lock", LOCK_S)

    def jobs(self) -> list[PoolJob]:
        """Return all jobs in the order of their numbers.

        Raises:
            SchedulerError: A file cannot be read: nothing follows from the others.
        """
        files = (self.folder / "jobs").glob("*.json")
        found = [self._read(path) for path in files]
        return sorted((job for job in found if job is not None), key=lambda job: job.place)

    def read(self, job_id: str) -> PoolJob | None:
        """Return a job, None where there is none of that id.

        Raises:
            SchedulerError: Its file cannot be read.
        """
        return self._read(self.job_file(job_id))

    def write(self, job: PoolJob) -> None:
        """Write a job; the environment of one that has ended goes."""
        write_json(self.job_file(job.job_id), as_document(job))
        if job.has_ended:
            self._environment_file(job.job_id).unlink(missing_ok=True)

    def take_number(self) -> int:
        """Return a number that no job has had; under the lock."""
        path = self.folder / _NUMBER
        last = 0
        with contextlib.suppress(OSError, ValueError):
            last = int(path.read_text())
        known = (p.stem.partition("_")[0] for p in (self.folder / "jobs").glob("*.json"))
        number = max([last, *(int(text) for text in known if text.isdigit())]) + 1
        write_bytes(path, f"{number}\n".encode())
        return number

    def write_environment(self, job_id: str, environment: Mapping[str, str]) -> None:
        """Keep what a job finds in its environment."""
        path = self._environment_file(job_id)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            json.dump(dict(environment), file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)

    def read_environment(self, job_id: str) -> dict[str, str] | None:
        """Return what a job finds in its environment, None where that is gone."""
        try:
            return json.loads(self._environment_file(job_id).read_text("ascii"))
        except (OSError, ValueError):
            return None

    def job_file(self, job_id: str) -> Path:
        """Return the file of a job."""
        return self.folder / "jobs" / f"{job_id}.json"

    def keeper_lock(self, job_id: str) -> Path:
        """Return the file that a job's keeper has locked as long as it lives."""
        return self.folder / "locks" / f"{job_id}.keeper"

    def tasks_lock(self, job_id: str) -> Path:
        """Return the file that is locked as long as any process of a job lives."""
        return self.folder / "locks" / f"{job_id}.tasks"

    def log(self, job_id: str) -> Path:
        """Return what a job's keeper prints."""
        return self.folder / "log" / f"{job_id}.log"

    def remove(self, job_id: str) -> bool:
        """Remove the files of a job that has ended; say whether they went. Under the lock."""
        for path in (self.keeper_lock(job_id), self.tasks_lock(job_id)):
            descriptor = try_lock(path)
            if descriptor is None:
                return False
            os.close(descriptor)
            path.unlink(missing_ok=True)
        for path in (self._environment_file(job_id), self.log(job_id), self.job_file(job_id)):
            path.unlink(missing_ok=True)
        return True

    def remove_halves(self, older_than_s: float) -> None:
        """Remove what writers have left that were killed."""
        for path in self.folder.glob("*/*.tmp"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > older_than_s:
                    path.unlink()

    def _environment_file(self, job_id: str) -> Path:
        return self.folder / "environment" / f"{job_id}.json"

    def _read(self, path: Path) -> PoolJob | None:
        try:
            return from_document(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:  # another client has removed it
            return None
        except (OSError, ValueError) as error:
            raise SchedulerError(
                f"{path}: cannot be read ({error}); remove it, and submit what it was for again"
            ) from error
