"""A scheduler's queue as it shows itself. `pipeline.ports` has these names too."""

from dataclasses import dataclass
from enum import StrEnum


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
