"""What squeue's words for a job's state mean."""

from pipeline.schedulers.port import JobPhase

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


def phase_of(word: str) -> JobPhase:
    """Return the phase that a word of squeue stands for."""
    return PHASES.get(word, JobPhase.UNSETTLED)
