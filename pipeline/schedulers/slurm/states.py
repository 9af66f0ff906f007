"""What squeue's words for a job's state mean."""

from pipeline.schedulers.port import EndKind, JobPhase

PHASES = {
    "PENDING": JobPhase.WAITING,
    "CONFIGURING": JobPhase.STARTING,
    "RUNNING": JobPhase.RUNNING,
    **dict.fromkeys(
        ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL",
         "DEADLINE", "REVOKED"),
        JobPhase.ENDED,
    ),
}  # fmt: skip
"""Every other word, COMPLETING, SUSPENDED, REQUEUE_HOLD or one of a newer Slurm, is of a job that
lives."""

NEVER_BEGAN = frozenset({"CANCELLED", "DEADLINE", "REVOKED", "BOOT_FAIL"})
"""How a job ends that has not said a word."""

NEVER_SATISFIED = "DependencyNeverSatisfied"
"""Why a job waits that waits for one that did not succeed."""


ENDS = {
    "NODE_FAIL": EndKind.NODE_FAILED, "BOOT_FAIL": EndKind.NODE_FAILED,
    "OUT_OF_MEMORY": EndKind.OUT_OF_MEMORY, "TIMEOUT": EndKind.TIME_LIMIT,
    "DEADLINE": EndKind.TIME_LIMIT, "PREEMPTED": EndKind.PREEMPTED,
    "CANCELLED": EndKind.CANCELLED, "REVOKED": EndKind.CANCELLED, "COMPLETED": EndKind.SUCCEEDED,
}  # fmt: skip


def is_over(state: str) -> bool:
    """Say whether a job in this state runs no more, be it to rise again."""
    word = state.split(" ")[0].rstrip("+")
    return word in ENDS or phase_of(word) is JobPhase.ENDED


def end_kind(state: str) -> EndKind:
    """Return what a state says of an end: `CANCELLED by 1000`, `OUT_OF_MEMORY`."""
    return ENDS.get(state.split(" ")[0].rstrip("+"), EndKind.OTHER)


def phase_of(word: str) -> JobPhase:
    """Return the phase that a word of squeue stands for."""
    return PHASES.get(word, JobPhase.UNSETTLED)
