"""End jobs. Their records, checkpoints and journals stay: submitted again they go on."""

from collections.abc import Sequence

from pipeline.jobs.verdict import Verdict
from pipeline.schedulers.port import Scheduler
from pipeline.submission.job_reports import JobReport

ENDED = (Verdict.SUCCEEDED, Verdict.FAILED, Verdict.STOPPED, Verdict.LOST)


def cancellable(reports: Sequence[JobReport]) -> list[JobReport]:
    """Return the jobs that the scheduler may still have."""
    return [r for r in reports if r.verdict not in ENDED and r.job_id is not None]


def cancel(reports: Sequence[JobReport], scheduler: Scheduler) -> list[JobReport]:
    """End those of the jobs that have not ended, and return them.

    Raises:
        SchedulerError: The scheduler cannot be reached.
    """
    found = cancellable(reports)
    ids = [report.job_id for report in found if report.job_id is not None]
    if ids:
        scheduler.cancel(ids)
    return found
