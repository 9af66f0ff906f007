"""What became of every job: all records and one question to the scheduler. Reads only."""

import getpass
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.jobs.folder import JobFolder
from pipeline.jobs.job import Attempt, Job, is_of_asl_pipe, read_attempts, read_job, token_in
from pipeline.jobs.state import JobState, RunStatus, read_state
from pipeline.jobs.verdict import Evidence, Finding, Patience, Verdict, judge
from pipeline.results.port import ResultCache
from pipeline.schedulers.port import QueuedJob, Scheduler, SchedulerError


@dataclass(frozen=True)
class JobReport:
    """A job with its evidence and the verdict on it.

    Attributes:
        paths: Its record.
        job: What it is to make.
        attempts: How often it was handed over, the first time first.
        state: What it says of itself.
        queued: The newest attempt's line in the queue, ended or not.
        finding: The verdict, and what it rests on.
    """

    paths: JobFolder
    job: Job
    attempts: Sequence[Attempt]
    state: JobState | None
    queued: QueuedJob | None
    finding: Finding

    @property
    def verdict(self) -> Verdict:
        return self.finding.verdict

    @property
    def attempt(self) -> Attempt | None:
        """The newest attempt."""
        return self.attempts[-1] if self.attempts else None

    @property
    def own_state(self) -> JobState | None:
        """What the newest attempt says of itself; None before it begins."""
        matches = self.state and self.attempt and self.state.token == self.attempt.token
        return self.state if matches else None

    @property
    def job_id(self) -> str | None:
        """The scheduler's id of the newest attempt, whoever knows it."""
        if self.attempt is not None and self.attempt.job_id is not None:
            return self.attempt.job_id
        if self.queued is not None:
            return self.queued.job_id
        return self.own_state.job_id if self.own_state else None


class Queue:
    """The scheduler's answer at one moment.

    Args:
        scheduler: Asked once, at once.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self.user = getpass.getuser()
        """Whose jobs it shows; of those of others it says nothing."""
        self.error: SchedulerError | None = None
        self.jobs: list[QueuedJob] = []
        try:
            self.jobs = scheduler.queue()
        except SchedulerError as error:
            self.error = error
        tokens = [(token_in(job.comment), job) for job in self.jobs]
        self._by_token = {token: job for token, job in tokens if token is not None}
        # where a site's rules take comments away; ids alone would match another cluster's jobs
        self._by_id = {job.job_id: job for job in self.jobs if not job.comment}

    def line_of(self, attempt: Attempt | None) -> QueuedJob | None:
        """Return an attempt's line."""
        if attempt is None:
            return None
        return self._by_token.get(attempt.token) or self._by_id.get(attempt.job_id or "")

    @property
    def live(self) -> list[QueuedJob]:
        """Jobs of this user that asl-pipe submitted, from any project, and that wait or run."""
        return [job for job in self.jobs if is_of_asl_pipe(job.comment) and not job.has_ended]


def job_reports(
    root: Path,
    scheduler: Scheduler,
    cache: ResultCache,
    *,
    patience: Patience | None = None,
    clock: Callable[[], float] = time.time,
) -> list[JobReport]:
    """Return a report on every job of a project, the oldest first.

    Args:
        root: Folder that has `.dvc`.
        scheduler: Asked once; if it does not answer, verdicts that need it are UNKNOWN.
        cache: Asked whether results are there.
        patience: How long silence means nothing.
        clock: Seconds since 1970.
    """
    queue = Queue(scheduler)
    folders = [path.parent for path in (root / ".asl" / "jobs").glob("*/job.json")]
    found = [report_on(JobFolder(f), root, queue, cache, patience, clock()) for f in folders]
    reports = [report for report in found if report is not None]
    return sorted(reports, key=lambda report: report.job.submitted)


def job_records(root: Path) -> list[JobReport]:
    """Return all jobs of a project by their records alone, the oldest first.

    Neither the scheduler nor DVC is asked: every verdict is UNKNOWN.
    """
    folders = [path.parent for path in (root / ".asl" / "jobs").glob("*/job.json")]
    found = [read_report(JobFolder(folder)) for folder in folders]
    reports = [report for report in found if report is not None]
    return sorted(reports, key=lambda report: report.job.submitted)


def read_report(paths: JobFolder) -> JobReport | None:
    """Return what a job's record says, not judged; None where there is none."""
    job = read_job(paths)
    if job is None:
        return None
    finding = Finding(Verdict.UNKNOWN, "the scheduler was not asked")
    return JobReport(paths, job, read_attempts(paths), read_state(paths), None, finding)


def report_on(
    paths: JobFolder,
    root: Path,
    queue: Queue,
    cache: ResultCache,
    patience: Patience | None,
    now: float,
) -> JobReport | None:
    """Return the report on one job, None where there is no record of it."""
    report = read_report(paths)  # after the queue was asked: what has ended by now has said so
    if report is None:
        return None
    newest, state = report.attempt, report.state
    manifest = state.manifest if state and state.status is RunStatus.SUCCEEDED else {}
    queued = queue.line_of(newest)
    foreign = newest is not None and newest.user != queue.user
    evidence = Evidence(
        attempt=newest,
        state=state,
        queued=queued,
        queue_answers=queue.error is None and not foreign,
        foreign=queue.error is None and foreign,
        outputs_visible=bool(manifest) and cache.holds(root, manifest),
    )
    return replace(report, queued=queued, finding=judge(evidence, now, patience))
