"""What actions need of the world outside, without naming who provides it."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipeline.config.cluster import SlurmResources
from pipeline.errors import AslPipeError
from pipeline.jobs.documents import Document, Hashes
from pipeline.jobs.queue import ENDED_STATES, QueuedJob, QueueState

__all__ = [
    "ENDED_STATES", "BatchJob", "Cluster", "CodeHistory", "Filing", "Gpus", "Identity", "Limits",
    "QueueState", "QueuedJob", "ResultCache", "Scheduler", "SchedulerError", "StageFacts",
    "SubmitError", "Tracker",
]  # fmt: skip


@dataclass(frozen=True)
class Identity:
    """What a stage's result depends on, at one moment.

    Attributes:
        fingerprint: Changes when the command, a tracked parameter, an input or the code does.
        inputs: Path of each input, as dvc.yaml has it, to its content's md5.
    """

    fingerprint: str
    inputs: Mapping[str, str]


@dataclass(frozen=True)
class Gpus:
    """The GPUs that a process may use.

    Attributes:
        uuids: One each.
        models: Their names, `NVIDIA H100 80GB HBM3`, one each.
        driver: Version of the driver.
    """

    uuids: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    driver: str | None = None

    def tags(self) -> dict[str, str]:
        """Return what a run says of them."""
        return {
            "gpu.uuids": ",".join(self.uuids) or "none",
            "gpu.model": ", ".join(dict.fromkeys(self.models)) or "none",
            "gpu.driver": self.driver or "none",
        }


@dataclass(frozen=True)
class StageFacts:
    """What DVC and its caches know of a stage of a suite, at one moment.

    Attributes:
        name: `pretrain@asl`.
        document: What the result would be filed under; inputs that do not exist have no hash.
        fingerprint: DVC's key of it; None as long as an input does not exist.
        recipe: See `pipeline.jobs.documents.recipe_id`.
        upstream: Path of each input that another stage makes -> that stage's name.
        outputs: The result where there is one: path -> {md5, size, nfiles}, all in DVC's cache.
        locked: What dvc.lock says of the stage.
    """

    name: str
    document: Document
    fingerprint: str | None
    recipe: str
    upstream: Mapping[str, str]
    outputs: Hashes | None
    locked: Document | None


@dataclass(frozen=True)
class Filing:
    """A result that is to be filed in DVC's caches.

    Attributes:
        root: Folder that has `.dvc`.
        suite: Folder with dvc.yaml.
        document: What it was made from, all inputs with their hashes.
        outputs: Path of each output, as dvc.yaml has it -> where it lies now.
        code: Folder with the code that made it.
        inputs: Folder with its inputs, at their paths.
        params: The suite's params.yaml as it was.
        scratch: Folder for files that are only needed meanwhile.
    """

    root: Path
    suite: Path
    document: Document
    outputs: Mapping[str, Path]
    code: Path
    inputs: Path
    params: Path
    scratch: Path


class ResultCache(Protocol):
    """Knows the identity of results, and keeps them under it."""

    def identify(self, suite: Path, name: str) -> Identity:
        """Return the identity that the stage `name` (`pretrain@asl`) of a suite has now."""
        ...

    def survey(
        self, suite: Path, names: Sequence[str], anew: Collection[str] = ()
    ) -> dict[str, StageFacts]:
        """Return the facts of stages and of all that they need, those that come first first.

        Results of the stages in `anew` are taken for absent.
        """
        ...

    def key(self, document: Document) -> str:
        """Return the fingerprint of a document whose inputs all have hashes."""
        ...

    def find(self, root: Path, fingerprint: str) -> Hashes | None:
        """Return the newest result under a fingerprint if all of it is in the cache."""
        ...

    def holds(self, root: Path, hashes: Hashes) -> bool:
        """Say whether the cache has all these files and folders, whole."""
        ...

    def add(self, root: Path, paths: Mapping[str, Path]) -> Hashes:
        """Put files and folders into the cache and return their hashes under the same names."""
        ...

    def digest(self, root: Path, path: Path) -> str | None:
        """Hash a file or folder anew, whatever is remembered of it; None where there is none."""
        ...

    def link(self, root: Path, hashes: Hashes, target: Path) -> None:
        """Lay files and folders out under `target`, at their paths, from the cache."""
        ...

    def adopt(self, suite: Path, names: Sequence[str]) -> None:
        """Take results of stages over into a suite and its dvc.lock; run nothing.

        Raises:
            OSError: It could not be done; carries why.
        """
        ...

    def file(self, filing: Filing) -> Hashes:
        """File a result as DVC would have filed it, and return its outputs' hashes."""
        ...


class CodeHistory(Protocol):
    """Knows which code is running."""

    def tags(self, root: Path) -> dict[str, str]:
        """Return the commit, whether the tree differs from it, and a digest of the difference."""
        ...


class Tracker(Protocol):
    """Shows runs to people."""

    def follow(self, journal: Path, out: Path) -> None:
        """Begin to show a run while it is made, its artifacts from `out` in the end; do not wait.

        Raises:
            TrackingError: It cannot be begun.
        """
        ...

    def ingest(self, journal: Path, out: Path) -> object:
        """Bring what a journal says, and the artifacts it names under `out`, into the store.

        It may be there only later: nothing that a stage does depends on it.

        Raises:
            TrackingError: The store cannot be reached.
        """
        ...


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
