"""What others need of a scheduler: jobs handed over, a queue that is asked, jobs ended.

A scheduler is a `SchedulerKind`, named by cluster.yaml: see `pipeline.config.schedulers`. What it
tells the processes of a job: `pipeline.schedulers.variables`.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol, runtime_checkable

from pipeline.config.job_resources import JobResources
from pipeline.config.schedulers import JobSettings
from pipeline.errors import AslPipeError

ARRAY_COMMENT = "asl-array:"
"""Begins the comment of an array, which has one for all of its elements; those of the elements are
in a file."""


class JobPhase(StrEnum):
    """How far a job is, as the queue shows it."""

    WAITING = "waiting"
    STARTING = "starting"
    """It has nodes, which are made ready."""
    RUNNING = "running"
    UNSETTLED = "unsettled"
    """It is there and neither waits nor runs: it is ending, suspended or on its way back into the
    queue, or the scheduler says a word that is not known here."""
    ENDED = "ended"


@dataclass(frozen=True)
class QueuedJob:
    """One line of the queue.

    Attributes:
        job_id: `27`, or `27_3` for an element of an array.
        phase: How far it is.
        said: The scheduler's own word for that, for people: `PENDING`, `OUT_OF_MEMORY`.
        reason: Why it waits, for people; may be empty.
        comment: The comment of the `BatchJob` that it was; of an array's element, its own.
        nodes: `n1` or `n[1-2]`; empty while it waits.
        restarts: How often it was requeued; None where the queue does not say.
        can_never_start: It waits for a job that did not succeed.
        never_began: It has ended in a way in which a job ends that has not begun.
    """

    job_id: str
    phase: JobPhase
    said: str
    reason: str = ""
    comment: str = ""
    nodes: str = ""
    restarts: int | None = None
    can_never_start: bool = False
    never_began: bool = False

    @property
    def has_ended(self) -> bool:
        return self.phase is JobPhase.ENDED


@dataclass(frozen=True)
class BatchJob:
    """What is handed to the scheduler.

    Attributes:
        name: `pretrain@asl`, for people.
        folder: The job's folder; what a process prints goes to `log/<job id>_<rank>.log`.
        comment: `asl:<first 8 of the fingerprint>:<token>`; by it a job is found again.
        command: What every task of the job executes, after the setup lines and in their
            environment: a task *is* this process, so that signals reach it. Before a time limit or
            a preemption it gets SIGUSR2 or SIGUSR1, which it may not be ready for yet.
        resources: Nodes, memory, time, ...: what `SchedulerKind.resources` declares.
        setup: Lines of shell before the command.
        after: Ids of jobs that must have succeeded.
        after_any: Ids of jobs that must have ended, however, or can never start any more.
        drop: Where a job in `after` does not succeed, it may be ended instead of waiting for ever;
            it is set where another job waits for this one by `after_any`.
        avoid: Nodes that it must not get.
    """

    name: str
    folder: Path
    comment: str
    command: tuple[str, ...]
    resources: JobResources
    setup: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    after_any: tuple[str, ...] = ()
    drop: bool = False
    avoid: tuple[str, ...] = ()


class SchedulerError(AslPipeError):
    """Raised when the scheduler cannot be asked or refuses; nothing follows from silence."""


class NoSchedulerError(SchedulerError):
    """Raised when this machine has no scheduler at all: no program that could be asked."""


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
        """Hand jobs over and return their ids, in order; equal resources may become arrays.

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

    def send_signal(self, job_id: str, name: str) -> None:
        """Send a signal (`USR2`) to all tasks of a job.

        Raises:
            SchedulerError: It could not be sent.
        """
        ...

    def explain(self, job_id: str) -> str | None:
        """Return why a job ended, None if that is unknown."""
        ...

    def remove_old_submissions(self, needed: Collection[Path] = ()) -> int:
        """Remove the files of submissions whose jobs can never run again; return how many.

        Args:
            needed: Records' folders, of jobs that may live: their submissions stay.

        Raises:
            SchedulerError: The queue cannot be asked.
        """
        ...


class EndKind(StrEnum):
    """Why a job ended, as far as a scheduler alone can know it."""

    NODE_FAILED = "node failed"
    OUT_OF_MEMORY = "out of memory"
    TIME_LIMIT = "time limit"
    PREEMPTED = "preempted"
    CANCELLED = "cancelled"
    SUCCEEDED = "succeeded"
    OTHER = "other"


@runtime_checkable
class KnowsNodes(Protocol):
    """What a scheduler of several nodes may be able to say besides.

    One that cannot is a scheduler all the same; of its jobs no node is excluded, and only those get
    more memory that said themselves that they had too little.
    """

    def ends_of(self, job_id: str) -> list[EndKind]:
        """Return how the starts of a job ended: of all, or of the last one; none: not known."""
        ...

    def node_names(self, nodes: str) -> tuple[str, ...]:
        """Return the names of nodes that the queue writes as one word: `n[1-2]` -> n1, n2.

        Raises:
            SchedulerError: It does not say.
        """
        ...

    def eligible_nodes(self, resources: JobResources) -> tuple[str, ...]:
        """Return the nodes on which a job could run that asks for this.

        Raises:
            SchedulerError: It does not say.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Account:
    """What a scheduler has booked of one start of a job; None for what it does not know.

    Attributes:
        job_id: As `submit` returned it.
        state: The scheduler's own word, for people.
        ready: Since when it could have begun, in seconds since 1970.
        began, ended: Likewise; `ended` is None while it runs.
        gpus, cpus: Over all nodes.
        cpu_s: Processor time that it used.
        memory: Bytes that it was given, over all nodes.
        memory_peak: Bytes that its processes used, each at most, summed.
    """

    job_id: str
    state: str
    ready: float | None = None
    began: float
    ended: float | None = None
    gpus: int | None = None
    cpus: int | None = None
    cpu_s: float | None = None
    memory: float | None = None
    memory_peak: float | None = None


@runtime_checkable
class KeepsAccounts(Protocol):
    """What a scheduler may be able to do besides: say what ended jobs took of its machines."""

    def accounts_of(self, job_ids: Sequence[str]) -> list[Account]:
        """Return the starts of jobs, each job's in their order; none where it keeps no accounts.

        Raises:
            SchedulerError: It keeps accounts and does not answer.
        """
        ...


class Level(StrEnum):
    """How much a finding matters."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    FAILURE = "failure"


@dataclass(frozen=True)
class Finding:
    """One thing that `asl-pipe doctor` has looked at.

    Attributes:
        what: `shared filesystem`.
        level: How much it matters.
        detail: What was found.
        remedy: What to do about it; empty if there is nothing to do.
    """

    what: str
    level: Level
    detail: str
    remedy: str = ""


Examination = Callable[[Path, Mapping[str, JobResources]], Iterator[Finding]]
"""Looks at what a scheduler says of itself, and of what each stage asks of it; starts no job. Is
given the project's `.asl`, and resources by stage."""


@dataclass(frozen=True)
class SchedulerKind(JobSettings):
    """A scheduler that cluster.yaml can name.

    Attributes:
        connect: Returns it, given the project's `.asl`, in which it may keep files.
        examine: For `asl-pipe doctor`; None where there is nothing to look at.
    """

    connect: Callable[[Path], Scheduler]
    examine: Examination | None = None
