"""What others need of a scheduler: jobs handed over, a queue that is asked, jobs ended."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from pipeline.config.cluster import SlurmResources
from pipeline.errors import AslPipeError

ARRAY_COMMENT = "asl-array:"
"""Begins the comment of an array, which has one for all of its elements; those of the elements are
in a file."""


class QueueState(StrEnum):
    """States of a job as squeue names them. A name that is not here counts as live."""

    PENDING = "PENDING"
    CONFIGURING = "CONFIGURING"
    RUNNING = "RUNNING"
    COMPLETING = "COMPLETING"
    SUSPENDED = "SUSPENDED"
    STOPPED = "STOPPED"
    SIGNALING = "SIGNALING"
    STAGE_OUT = "STAGE_OUT"
    RESIZING = "RESIZING"
    PREEMPTED = "PREEMPTED"
    REQUEUED = "REQUEUED"
    REQUEUE_FED = "REQUEUE_FED"
    REQUEUE_HOLD = "REQUEUE_HOLD"
    RESV_DEL_HOLD = "RESV_DEL_HOLD"
    SPECIAL_EXIT = "SPECIAL_EXIT"
    # from here on: ended, and still remembered
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    TIMEOUT = "TIMEOUT"
    NODE_FAIL = "NODE_FAIL"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    BOOT_FAIL = "BOOT_FAIL"
    DEADLINE = "DEADLINE"
    REVOKED = "REVOKED"


ENDED_STATES = frozenset(
    {
        QueueState.COMPLETED, QueueState.FAILED, QueueState.CANCELLED, QueueState.TIMEOUT,
        QueueState.NODE_FAIL, QueueState.OUT_OF_MEMORY, QueueState.BOOT_FAIL, QueueState.DEADLINE,
        QueueState.REVOKED,
    }
)  # fmt: skip


@dataclass(frozen=True)
class QueuedJob:
    """One line of the queue.

    Attributes:
        job_id: `27`, or `27_3` for an element of an array.
        state: A `QueueState`, or a name that a newer Slurm has.
        reason: Why it waits: `Priority`, `DependencyNeverSatisfied`, ...
        comment: The comment of the `BatchJob` that it was; of an array's element, its own.
        nodes: `n1` or `n[1-2]`; empty while it waits.
        restarts: How often it was requeued; None where the queue does not say.
    """

    job_id: str
    state: str
    reason: str
    comment: str
    nodes: str
    restarts: int | None

    @property
    def has_ended(self) -> bool:
        return self.state in ENDED_STATES


@dataclass(frozen=True)
class BatchJob:
    """What is handed to the scheduler.

    Attributes:
        name: `pretrain@asl`, for people.
        folder: The job's folder; logs go to `log/`, the scheduler's own files beside them.
        comment: `asl:<first 8 of the fingerprint>:<token>`; by it a job is found again.
        command: What every task of the job executes, after the setup lines and in their
            environment: a task *is* this process, so that signals reach it.
        resources: Partition, nodes, memory, time, ...
        setup: Lines of shell before the command.
        after: Ids of jobs that must have succeeded (`afterok`).
    """

    name: str
    folder: Path
    comment: str
    command: tuple[str, ...]
    resources: SlurmResources
    setup: tuple[str, ...] = ()
    after: tuple[str, ...] = ()


@dataclass(frozen=True)
class Limits:
    """What the scheduler allows; None where it does not say.

    Attributes:
        max_array_size: Largest index of an array, plus one.
    """

    max_array_size: int | None = None


class SchedulerError(AslPipeError):
    """Raised when the scheduler cannot be asked or refuses; nothing follows from silence."""


class SubmitError(SchedulerError):
    """Raised when jobs were not, or perhaps not, taken.

    Attributes:
        ambiguous: The first jobs without an id may be in the queue all the same: look for their
            comments. Jobs of other arrays, later in the order, were never handed over.
        job_ids: Ids of the jobs, in their order; None for those that have none.
    """

    def __init__(
        self, message: str, *, ambiguous: bool, job_ids: Sequence[str | None] = ()
    ) -> None:
        super().__init__(message)
        self.ambiguous = ambiguous
        self.job_ids = tuple(job_ids)


class Scheduler(Protocol):
    """Starts jobs on machines and knows what it was given."""

    def submit(self, jobs: Sequence[BatchJob]) -> list[str]:
        """Hand jobs over and return their ids, in order; equal resources become arrays.

        Raises:
            SubmitError: Some of them were refused, or it is not known whether they were.
        """
        ...

    def queue(self) -> list[QueuedJob]:
        """Return this user's jobs, ended ones too as long as they are remembered.

        Raises:
            SchedulerError: The queue cannot be asked. It is never empty for that reason.
        """
        ...

    def cancel(self, job_ids: Sequence[str]) -> None:
        """End jobs; ids of jobs that have ended are no error.

        Raises:
            SchedulerError: The scheduler cannot be reached.
        """
        ...

    def requeue(self, job_id: str) -> None:
        """Put a running job back into the queue under its id.

        Raises:
            SchedulerError: It cannot be requeued, waits already, or is being cancelled.
        """
        ...

    def explain(self, job_id: str) -> str | None:
        """Return why a job ended, None where nobody knows."""
        ...

    def limits(self) -> Limits:
        """Return what the cluster allows."""
        ...

    def remove_old_submissions(self, needed: Collection[Path] = ()) -> int:
        """Remove files of submissions of which no job can run again; return of how many.

        Args:
            needed: Records' folders, of jobs that may live: their submissions stay.

        Raises:
            SchedulerError: The queue cannot be asked.
        """
        ...


class Cluster(Scheduler, Protocol):
    """A scheduler that can be looked at closely, by who looks for faults in it."""

    def configuration(self) -> dict[str, str]:
        """Return the cluster's settings, as Slurm names them.

        Raises:
            SchedulerError: It does not answer.
        """
        ...

    def try_out(self, resources: SlurmResources) -> str:
        """Return when a job with these resources would start; submit nothing.

        Raises:
            SchedulerError: It never would.
        """
        ...

    def send_signal(self, job_id: str, name: str) -> None:
        """Send a signal (`USR2`) to all tasks of a job.

        Raises:
            SchedulerError: It could not be sent.
        """
        ...
