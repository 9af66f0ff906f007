"""Which runs a follow-up submits again, in what order, and what it says of the others."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.cluster import job_resources
from pipeline.config.job_resources import JobResources
from pipeline.jobs.claim import claim, renewed
from pipeline.jobs.folder import PROVISIONAL, JobFolder
from pipeline.jobs.job import Attempt, newer_attempt
from pipeline.jobs.starts import Cause, Start, last_of
from pipeline.jobs.verdict import Verdict
from pipeline.schedulers.port import EndKind, KnowsNodes, SchedulerError
from pipeline.submission.follow_up import Followed
from pipeline.submission.hand_over import hand_over, prepare_attempt
from pipeline.submission.history import advise, lacks_memory, memory_hint, starts_of
from pipeline.submission.job_reports import JobReport, Queue, report_on
from pipeline.submission.notify import RunEnd
from pipeline.submission.plan import SubmissionServices

logger = logging.getLogger(__name__)

POLL_S = 5.0
GOES_ON = "goes on"
_UNDECIDED = (Verdict.SETTLING, Verdict.UNKNOWN)
_MAY_SUCCEED = (Cause.NODE, Cause.DIED, Cause.CRASHED, Cause.PREEMPTED, Cause.REQUEUED)
_REMEDIES = {
    Cause.TIME: "raise time, or warning, in cluster.yaml; asl-pipe submit resumes it",
    Cause.STOPPED: "it was stopped; asl-pipe submit resumes it from its checkpoint",
    Cause.CANCELLED: "it was cancelled; asl-pipe submit resumes it from its checkpoint",
}


@dataclass(frozen=True)
class LookedAfter:
    """What became of the runs of a follow-up.

    Attributes:
        ends: Of all of them, as people are told.
        living: Those that go on, with their jobs' ids.
    """

    ends: tuple[RunEnd, ...]
    living: tuple[Followed, ...]


def look_after(root: Path, runs: Sequence[Followed], services: SubmissionServices) -> LookedAfter:
    """Submit again what may be, those first that others need.

    Args:
        root: Folder of the project.
        runs: Those that others need first.
        services: The world outside.

    Raises:
        SchedulerError: The scheduler does not answer; nothing was submitted from then on.
    """
    reports = _settled(root, runs, services)
    ends: dict[str, RunEnd] = {}
    living: dict[str, Followed] = {}
    made: dict[str, str] = {}
    """Fingerprint -> id of the job that goes on with it."""
    given_up: dict[str, str] = {}
    for run in runs:
        report = reports.get(run.fingerprint)
        if report is None:
            ends[run.name] = RunEnd(run.name, "LOST", run.job_id, "its record is gone",
                                    "asl-pipe submit makes it anew")  # fmt: skip
            given_up[run.fingerprint] = run.name
            continue
        said = _try(report, made, given_up, services)
        ends[run.name] = said
        if said.outcome == GOES_ON:
            made[run.fingerprint] = said.job
            living[run.name] = Followed(run.name, run.fingerprint, said.job)
        elif said.outcome != Verdict.SUCCEEDED:
            given_up[run.fingerprint] = run.name
    return LookedAfter(tuple(ends.values()), tuple(living.values()))


def _settled(
    root: Path, runs: Sequence[Followed], services: SubmissionServices
) -> dict[str, JobReport]:
    """Return the reports once it is known what became of the jobs, or it is time to give up."""
    give_up = services.clock() + services.patience.settling_s + services.patience.silence_s
    while True:
        queue = Queue(services.scheduler)
        found: dict[str, JobReport] = {}
        for run in runs:
            paths = JobFolder.of(root / ".asl", run.fingerprint)
            report = report_on(
                paths, root, queue, services.cache, services.patience, services.clock()
            )
            if report is not None:
                found[run.fingerprint] = report
        undecided = [each for each in found.values() if each.verdict in _UNDECIDED]
        if not undecided:
            return found
        if services.clock() >= give_up:
            if queue.error is not None:
                raise queue.error
            return found
        services.pause(min(POLL_S, services.patience.silence_s / 5))


def _try(
    report: JobReport,
    made: Mapping[str, str],
    given_up: Mapping[str, str],
    services: SubmissionServices,
) -> RunEnd:
    """Decide what to do about one run, do it, and return what to say."""
    name, job_id, attempt = report.job.name, report.job_id or "", report.attempt
    said = f"{report.verdict} {report.finding.detail}".strip()
    if report.verdict is Verdict.SUCCEEDED:
        return RunEnd(name, str(report.verdict), job_id)
    if report.verdict is Verdict.STOPPED:  # by halving, on purpose
        return RunEnd(name, str(report.verdict), job_id, report.finding.detail)
    if report.verdict is Verdict.ACTIVE:
        return RunEnd(name, GOES_ON, job_id, report.finding.detail)
    if attempt is None or report.verdict in _UNDECIDED:
        return RunEnd(name, str(report.verdict), job_id, report.finding.detail,
                      "look again later: asl-pipe status")  # fmt: skip
    upstream = dict.fromkeys(attempt.terms.upstream.values())
    lacking = [given_up[each] for each in upstream if each in given_up]
    if lacking:
        return RunEnd(name, "waits", job_id, f"needs {', '.join(lacking)}")
    after = tuple(dict.fromkeys(made[each] for each in upstream if each in made))
    asked = job_resources(attempt.terms.scheduler, attempt.terms.asked)
    starts = starts_of([report.paths], services.scheduler)
    last = last_of(starts, attempt.number)
    if last is None and (after or _was_dropped(attempt, services)):
        return _again(report, asked, starts, after, attempt.retry, services)
    cause = last.cause if last is not None else _end_of(report, services)
    if last is not None and cause in _MAY_SUCCEED and _was_cancelled(report, services):
        cause = Cause.CANCELLED
    if cause is Cause.MEMORY and not lacks_memory(starts, asked):
        return _again(report, asked, starts, after, attempt.retry, services)
    if cause in _MAY_SUCCEED and attempt.retry < asked.retries:
        return _again(report, asked, starts, after, attempt.retry + 1, services)
    remedy = memory_hint(starts, asked) or _REMEDIES.get(cause) if cause is not None else None
    if cause is None:
        remedy = "it ended before it began; asl-pipe submit submits it again"
    tries = "retry" if attempt.retry == 1 else "retries"
    spent = f" after {attempt.retry} {tries}" if attempt.retry else ""
    return RunEnd(
        name, str(report.verdict), job_id, said.partition(" ")[2] + spent,
        remedy or f"see asl-pipe logs {name}; then asl-pipe submit resumes it",
    )  # fmt: skip


def _was_dropped(attempt: Attempt, services: SubmissionServices) -> bool:
    """Say whether a job never began because one that it waited for did not succeed.

    That one's run may have succeeded all the same: its processes outlived a node that the scheduler
    had given up.
    """
    scheduler = services.scheduler
    if not (attempt.drop and isinstance(scheduler, KnowsNodes)):
        return False
    ends = [scheduler.ends_of(job_id) for job_id in attempt.after]
    return any(known and known[-1] is not EndKind.SUCCEEDED for known in ends)


def _was_cancelled(report: JobReport, services: SubmissionServices) -> bool:
    """Say whether somebody ended a job that waited to begin again after its last start."""
    queued, scheduler = report.queued, services.scheduler
    if queued is not None and queued.has_ended and queued.said.startswith("CANCELLED"):
        return True
    if not isinstance(scheduler, KnowsNodes) or report.job_id is None:
        return False
    return scheduler.ends_of(report.job_id)[-1:] == [EndKind.CANCELLED]


def _end_of(report: JobReport, services: SubmissionServices) -> Cause | None:
    """Return why a job ended that never began: with its node, or in some other way."""
    scheduler, job_id = services.scheduler, report.job_id
    if isinstance(scheduler, KnowsNodes) and job_id is not None:
        ends = scheduler.ends_of(job_id)
        if ends and ends[-1] is EndKind.NODE_FAILED:
            return Cause.NODE
    return None


def _again(
    report: JobReport,
    asked: JobResources,
    starts: Sequence[Start],
    after: tuple[str, ...],
    retry: int,
    services: SubmissionServices,
) -> RunEnd:
    """Submit a run again on the terms that it had, but for nodes and memory."""
    name, attempt, paths = report.job.name, report.attempt, report.paths
    assert attempt is not None
    held = claim(paths.folder.parent, PROVISIONAL + report.job.recipe, services.clock())
    remedy = "asl-pipe submit submits it again"
    if held is None:
        return RunEnd(name, str(report.verdict), "", "another process is submitting it", remedy)
    try:
        with renewed([held], services.clock):
            newer = newer_attempt(paths, attempt.number)
            if newer is not None and newer.job_id is not None:
                return RunEnd(name, GOES_ON, newer.job_id, "submitted again by someone else")
            if report.verdict is Verdict.BLOCKED and report.job_id is not None:
                services.scheduler.cancel([report.job_id])
            advice = advise(starts, asked, services.scheduler, attempt.terms.snapshot)
            terms = dataclasses.replace(
                attempt.terms, avoid=advice.avoid, notes=advice.notes,
                asked=dataclasses.asdict(advice.applied_to(asked)),
            )  # fmt: skip
            ready = prepare_attempt(
                paths, report.job, terms, after=after, retry=retry, drop=True, clock=services.clock
            )
            (made,), refusal = hand_over(
                [ready], services.scheduler, services.patience, services.pause, services.clock
            )
    except (OSError, SchedulerError) as error:
        return RunEnd(name, str(report.verdict), "", f"not submitted again: {error}", remedy)
    finally:
        held.release()
    if made.job_id is None:
        return RunEnd(name, str(report.verdict), "", f"not submitted again: {refusal}", remedy)
    changes = [f"avoids {node}, {why}" for node, why in advice.avoid.items()]
    changes += [f"memory {advice.memory}"] if advice.memory is not None else []
    logger.info("%s: submitted again as %s %s", name, made.job_id, "; ".join(changes))
    return RunEnd(name, GOES_ON, made.job_id, "; ".join(["submitted again", *changes]))
