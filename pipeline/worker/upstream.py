"""Whether what a job needs is there, asked when the job begins."""

from collections.abc import Mapping
from pathlib import Path

from pipeline.errors import AslPipeError
from pipeline.jobs.fence import holder_of
from pipeline.jobs.folder import PROVISIONAL, JobFolder
from pipeline.jobs.job import Job
from pipeline.jobs.state import RunStatus
from pipeline.jobs.verdict import Patience, Verdict
from pipeline.results.documents import Document, Hashes, missing_deps, with_deps
from pipeline.submission.job_reports import JobReport, Queue, report_on
from pipeline.worker.process import WorkerServices

POLL_S = 2.0
_UNDECIDED = (Verdict.SETTLING, Verdict.UNKNOWN)


class UpstreamError(AslPipeError):
    """Raised when an input does not exist and nothing is making it."""


class UpstreamPending(AslPipeError):
    """Raised when an input is still being made, by other jobs than the one waited for.

    Attributes:
        job_ids: Those jobs.
    """

    exit_code = 75

    def __init__(self, message: str, job_ids: tuple[str, ...]) -> None:
        super().__init__(message)
        self.job_ids = job_ids


def resolve(
    job: Job, upstream: Mapping[str, str], paths: JobFolder, services: WorkerServices
) -> Document:
    """Return a job's document with the hashes of all inputs.

    Args:
        job: The job.
        upstream: Path of an input that another stage makes -> fingerprint of that run.
        paths: The job's record.
        services: Where results and jobs are found.

    Raises:
        UpstreamError: An input was not made.
        UpstreamPending: It is being made.
    """
    missing = missing_deps(job.document)
    hashes: dict[str, dict[str, object]] = {}
    pending: dict[str, str] = {}
    for path in missing:
        fingerprint = upstream[path]
        found, job_id = _wait_for_output(path, fingerprint, paths, services)
        if found is not None:
            hashes[path] = dict(found[path])
        elif job_id is not None:
            pending[path] = job_id
    if pending:
        ids = tuple(sorted(set(pending.values())))
        raise UpstreamPending(
            f"{job.name} needs {', '.join(pending)}; being made by {', '.join(ids)}", ids
        )
    return with_deps(job.document, hashes)


def yield_folder_to_live_job(fence: Path, paths: JobFolder, services: WorkerServices) -> None:
    """Leave a folder to the job of another run that works there, as long as that lives.

    Runs of different recipes can turn out to be one and the same when their inputs are there.

    Args:
        fence: Names whose job works in the folder.
        paths: The record of the job that asks.
        services: Where the other job is looked for.

    Raises:
        UpstreamPending: The other job lives; its result will be found afterwards.
    """
    began = services.clock()
    while True:
        holder = holder_of(fence)
        if holder is None or holder == paths.fingerprint:
            return
        report = _report_on(JobFolder.of(paths.scratch, holder), services)
        if report is None or report.verdict not in (Verdict.ACTIVE, *_UNDECIDED):
            return
        late = services.clock() - began >= services.patience.submitted_s
        lives = report.verdict is Verdict.ACTIVE or (late and _beats(report, services))
        if lives and report.job_id is not None:
            raise UpstreamPending(
                f"job {report.job_id} of {report.job.name} computes the same", (report.job_id,)
            )
        if late:
            return
        services.pause(POLL_S)


def _beats(report: JobReport, services: WorkerServices) -> bool:
    """Say whether a job has said a moment ago that it runs."""
    state = report.own_state
    if state is None or state.status is not RunStatus.RUNNING:
        return False
    return services.clock() - state.heartbeat < services.patience.silence_s


def _wait_for_output(
    path: str, fingerprint: str, paths: JobFolder, services: WorkerServices
) -> tuple[Hashes | None, str | None]:
    """Return the outputs of the run that makes `path`, or the id of the job that still does.

    What another machine has written may show here a little later: it is looked for again.
    """
    root, upstream = paths.scratch.parent, JobFolder.of(paths.scratch, fingerprint)
    began = services.clock()
    while True:
        report = _report_on(upstream, services)
        if report is not None and report.verdict is Verdict.SUCCEEDED:
            assert report.state is not None
            return report.state.manifest, None
        if report is not None and report.verdict is Verdict.ACTIVE and report.job_id:
            return None, report.job_id
        provisional = fingerprint.startswith(PROVISIONAL)
        found = None if provisional else services.cache.find(root, fingerprint)
        if found is not None:
            return found, None
        if services.clock() - began >= _seconds_to_wait(report, services.patience):
            said = "it has no record" if report is None else (
                f"{report.verdict} {report.finding.detail}".strip()
            )  # fmt: skip
            raise UpstreamError(f"{path} was not made: {fingerprint[:12]}: {said}")
        services.pause(POLL_S)


def _seconds_to_wait(report: JobReport | None, patience: Patience) -> float:
    """Return for how long evidence may still be on its way that would change a verdict."""
    if report is None or report.verdict in (Verdict.LOST, Verdict.ACTIVE):
        return patience.submitted_s
    if report.verdict in _UNDECIDED:
        return patience.settling_s
    return 0.0


def _report_on(paths: JobFolder, services: WorkerServices) -> JobReport | None:
    return report_on(
        paths, paths.scratch.parent, Queue(services.scheduler), services.cache, services.patience,
        services.clock(),
    )  # fmt: skip
