"""Small jobs that tests hand to a scheduler, and waiting for what becomes of them."""

import secrets
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.schedulers.port import BatchJob, QueuedJob
from pipeline.schedulers.slurm.resources import SlurmResources
from pipeline.schedulers.slurm.scheduler import SlurmScheduler


@dataclass
class Jobs:
    """Hands small Python programs to a scheduler and waits for what becomes of them."""

    folder: Path
    scheduler: SlurmScheduler
    count: int = 0

    def make(
        self,
        program: str,
        *arguments: str,
        comment: str | None = None,
        setup: tuple[str, ...] = (),
        after: tuple[str, ...] = (),
        **resources: object,
    ) -> BatchJob:
        """Return a job that runs a program; its folder is its own."""
        self.count += 1
        return BatchJob(
            name=f"job{self.count}",
            folder=self.folder / f"job{self.count}",
            comment=comment
            or f"asl:{self.count:08d}:{secrets.token_hex(4)}",  # jobs of other tests are remembered
            command=(sys.executable, "-u", "-c", program, *arguments),
            resources=SlurmResources(**resources),  # type: ignore[arg-type]
            setup=setup,
            after=after,
        )

    def log(self, job: BatchJob, job_id: str, rank: int = 0) -> str:
        return (job.folder / "log" / f"{job_id}_{rank}.log").read_text()

    def find(self, job_id: str) -> QueuedJob:
        return next(job for job in self.scheduler.queue() if job.job_id == job_id)

    def is_live(self, job_id: str) -> bool:
        """Say whether a job may still run; an element that never began is forgotten at once."""
        return any(job.job_id == job_id and not job.has_ended for job in self.scheduler.queue())

    def wait(
        self, job_id: str, until: Callable[[QueuedJob], bool], seconds: float = 60.0
    ) -> QueuedJob:
        """Wait until the queue shows a job as wanted."""
        give_up = time.monotonic() + seconds
        while not until(job := self.find(job_id)):
            assert time.monotonic() < give_up, job
            time.sleep(0.2)
        return job

    def wait_for_end(self, job_id: str, seconds: float = 60.0) -> QueuedJob:
        return self.wait(job_id, lambda job: job.has_ended, seconds)

    def wait_for_log(
        self, job: BatchJob, job_id: str, text: str, rank: int = 0, seconds: float = 60.0
    ) -> None:
        """Wait until a task has said something."""
        path = job.folder / "log" / f"{job_id}_{rank}.log"
        give_up = time.monotonic() + seconds
        while not (path.is_file() and text in path.read_text()):
            assert time.monotonic() < give_up, (
                path.read_text() if path.is_file() else self.find(job_id)
            )
            time.sleep(0.1)
