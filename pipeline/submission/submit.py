"""Carry out a plan: claim, freeze, hand over, each run after those that it needs.

Writes under `.asl`; touches neither the workspace nor dvc.lock. Killed at any moment and called
again, it finds every job that the scheduler has and submits only what is missing.
"""

import dataclasses
import functools
import getpass
import logging
import os
import shutil
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from asl_core.wording import counted
from pipeline.errors import UserError
from pipeline.jobs.claim import Claim, claim, renewed
from pipeline.jobs.container import lacking
from pipeline.jobs.folder import JobFolder
from pipeline.jobs.job import Job, Terms, read_job, write_job
from pipeline.project import Project, data_root
from pipeline.results.code import code_folder, freeze
from pipeline.schedulers.port import JobPhase, SchedulerError
from pipeline.submission.follow_up import (
    Followed,
    FollowUp,
    hand_over_follow_up,
    new_token,
    not_followed,
    remove_old,
)
from pipeline.submission.hand_over import ReadyAttempt, hand_over, prepare_attempt
from pipeline.submission.history import Advice, advise, starts_of
from pipeline.submission.job_reports import JobReport, Queue
from pipeline.submission.plan import (
    Action,
    Entry,
    Plan,
    SubmissionServices,
    fingerprint_of,
    fingerprints_of,
    judge_entry,
    relative_suite,
)
from pipeline.writing import write_bytes

logger = logging.getLogger(__name__)

POLL_S = 2.0


class Outcome(StrEnum):
    """What became of one run of a plan."""

    DONE = "done"
    ATTACHED = "attached"
    SUBMITTED = "submitted"
    HELD = "held back"
    """There was no room, or what it needs was not submitted either: submit again later."""
    WAITING = "not decided"
    """Its last job is beginning or ending: submit again in a minute."""
    STOPPED = "left out"
    """Stopped by its sweep's halving, or it needs what was."""
    REFUSED = "refused"


@dataclass(frozen=True)
class Submitted:
    """What became of one run.

    Attributes:
        name: `pretrain@asl`.
        fingerprint: Of its job.
        outcome: What happened.
        job_id: The scheduler's, of the job that lives.
        detail: Why, where it is not plain.
    """

    name: str
    fingerprint: str
    outcome: Outcome
    job_id: str | None = None
    detail: str = ""


def submit(plan: Plan, services: SubmissionServices) -> list[Submitted]:
    """Submit what a plan says, one level of the DAG after the other.

    Returns:
        What became of each run, in the plan's order.

    Raises:
        SchedulerError: The scheduler cannot be asked; nothing was submitted from then on.
    """
    _check_containers(plan)
    if plan.is_local:
        raise UserError(f"{plan.queue_error}; `dvc repro` runs the stages on this machine")
    if plan.queue_error is not None:
        raise SchedulerError(f"{plan.queue_error}; nothing was submitted, try again later")
    tags = services.code.tags(plan.project.root)
    results = {
        entry.name: _became(entry, Outcome.DONE)
        for entry in plan.entries
        if entry.action is Action.NOTHING
    }
    under_way = _Submission(plan, services, tags, results, _Room())
    for level in _levels(plan):
        _submit_level(under_way, level)
    return [results[entry.name] for entry in plan.entries]


def _check_containers(plan: Plan) -> None:
    """Raise UserError where a run is to be submitted whose image or project cannot be entered."""
    root = plan.project.root
    for entry in plan.entries:
        container = entry.request.asked.container
        if entry.action in (Action.SUBMIT, Action.REPLACE) and container is not None:
            if {",", ":"} & {*str(root), *str(root.resolve())}:
                raise UserError(
                    f"{root}: no container can be given a folder with , or : in its path, which "
                    f"separate binds; rename it, or remove container from "
                    f"{plan.project.cluster_file}"
                )
            missing = lacking(container, on_node=False)
            if missing is not None:
                raise UserError(f"{plan.project.cluster_file}: {entry.name}: {missing}")


def follow(
    plan: Plan, services: SubmissionServices, results: Sequence[Submitted]
) -> FollowUp | None:
    """Hand over the job that looks after the others, where cluster.yaml wants one.

    Args:
        plan: What was carried out.
        services: The world outside.
        results: What became of it.

    Returns:
        What was handed over; None where there is nothing to look after, or somebody does already.

    Raises:
        SchedulerError: It was not, or perhaps not, taken.
    """
    jobs = {each.job_id: each for each in results if each.job_id is not None}
    if plan.follow_up is None or not jobs:
        return None
    scratch, queue = plan.project.scratch, Queue(services.scheduler)
    if queue.error is not None:
        raise queue.error
    if not not_followed(scratch, queue, jobs):
        return None
    now = services.clock()
    remove_old(scratch, now)
    wanted = FollowUp(
        token=new_token(), suite=relative_suite(plan.project), submitted=now,
        runs=tuple(Followed(each.name, each.fingerprint, job_id) for job_id, each in jobs.items()),
        snapshot=freeze(plan.code, scratch), scheduler=plan.scheduler,
        asked=dataclasses.asdict(plan.follow_up),
    )  # fmt: skip
    return hand_over_follow_up(scratch, wanted, services.scheduler, tuple(jobs))


class _Room:
    """How many jobs the queue holds: as it was seen first, and what was added since."""

    def __init__(self) -> None:
        self.queued: int | None = None

    def take(self, queue: Queue, most: int) -> bool:
        """Count a job that is about to be handed over, if the queue may hold one more."""
        if self.queued is None:
            self.queued = len(queue.live)
        if self.queued >= most:
            return False
        self.queued += 1
        return True


@dataclass(frozen=True)
class _Submission:
    """One call of `submit`.

    Attributes:
        plan: What is to be done.
        services: The world outside.
        tags: Name the commit.
        results: What became of each run so far, by its name.
        room: In the queue.
    """

    plan: Plan
    services: SubmissionServices
    tags: dict[str, str]
    results: dict[str, Submitted]
    room: _Room

    @property
    def is_followed(self) -> bool:
        """Say whether a small job is to look after the others."""
        return self.plan.follow_up is not None

    @functools.cached_property
    def snapshot(self) -> str:
        """Digest of the frozen code; it is frozen when the first run is prepared."""
        return freeze(self.plan.code, self.plan.project.scratch)


def _became(
    entry: Entry,
    outcome: Outcome,
    job_id: str | None = None,
    detail: str = "",
    fingerprint: str | None = None,
) -> Submitted:
    named = fingerprint or entry.fingerprint
    return Submitted(entry.name, named, outcome, job_id, detail)


def _submit_level(submission: _Submission, level: list[Entry]) -> None:
    """Submit runs that do not need one another; wait for those that others submit."""
    services, results = submission.services, submission.results
    give_up = services.clock() + services.patience.submitted_s
    waiting = []
    for entry in level:
        lacking = _lacking(submission, entry)
        if lacking is None:
            waiting.append(entry)
        elif results[lacking].outcome is Outcome.STOPPED:
            results[entry.name] = _became(entry, Outcome.STOPPED, detail=f"{lacking} was stopped")
        else:
            detail = f"{lacking}: {results[lacking].outcome}"
            results[entry.name] = _became(entry, Outcome.HELD, detail=detail)
    while waiting:
        waiting = _try(submission, waiting)
        if waiting and services.clock() > give_up:
            for entry in waiting:
                detail = entry.detail or "another process is submitting it"
                results[entry.name] = _became(entry, Outcome.WAITING, detail=detail)
            return
        if waiting:
            services.pause(min(POLL_S, services.patience.submitted_s / 5))


def _lacking(submission: _Submission, entry: Entry) -> str | None:
    """Return the name of a run that this one needs and that has neither a result nor a job."""
    for name in entry.needs:
        needed = submission.results[name]
        if needed.job_id is None and needed.outcome is not Outcome.DONE:
            return name
    return None


def _try(submission: _Submission, entries: list[Entry]) -> list[Entry]:
    """Claim what can be claimed, look again, hand over; return what is to be tried later."""
    services = submission.services
    jobs = submission.plan.project.scratch / "jobs"
    claims: dict[str, Claim] = {}
    later: list[Entry] = []
    ready: list[tuple[Entry, ReadyAttempt]] = []
    try:
        for entry in entries:
            # by recipe: a run's key and the name it had before its inputs were there are one run
            held = claim(jobs, fingerprints_of(entry.facts)[-1], services.clock())
            if held is None:
                later.append(entry)
            else:
                claims[entry.name] = held
        if not claims:
            return later
        with renewed(claims.values(), services.clock):
            queue = Queue(services.scheduler)  # after claiming, or it is of yesterday
            if queue.error is not None:
                raise queue.error
            for entry in entries:
                if entry.name in claims:
                    match _decide(submission, entry, queue):
                        case Submitted() as became:
                            submission.results[entry.name] = became
                        case Entry() as undecided:
                            later.append(undecided)
                        case ReadyAttempt() as attempt:
                            ready.append((entry, attempt))
            _hand_over(submission, ready, claims)
    finally:
        for held in claims.values():
            held.release()
    return later


def _decide(
    submission: _Submission, entry: Entry, queue: Queue
) -> Submitted | Entry | ReadyAttempt:
    """Look once more, under the claim.

    Returns:
        What became of the run; or the run, to be tried later; or its attempt, to be handed over.
    """
    services, project = submission.services, submission.plan.project
    if not entry.force and _has_result(submission, entry):
        return _became(entry, Outcome.DONE)
    anew = _is_anew(submission.plan, entry)
    action, detail, report = judge_entry(
        project, entry.facts, queue, services, anew=anew, halved=entry.halved
    )
    if action is Action.NOTHING and report is not None:
        return _became(entry, Outcome.DONE, fingerprint=fingerprint_of(report))
    if action is Action.ATTACH and report is not None:
        if not _is_to_be_replaced(entry, report):
            fingerprint = report.paths.fingerprint
            return _became(entry, Outcome.ATTACHED, report.job_id, detail, fingerprint)
        action = Action.REPLACE
    if action is Action.STOPPED:
        return _became(entry, Outcome.STOPPED, detail=detail)
    if action is Action.WAIT:
        return replace(entry, detail=detail)
    most = entry.request.asked.max_queued
    if not submission.room.take(queue, most):
        queued = submission.room.queued
        detail = f"the queue holds {counted(queued or 0, 'job')} of asl-pipe, max_queued is {most}"
        return _became(entry, Outcome.HELD, detail=detail)
    if action is Action.REPLACE and report is not None and report.job_id is not None:
        services.scheduler.cancel([report.job_id])
    return _prepare(submission, entry)


def _is_anew(plan: Plan, entry: Entry) -> bool:
    """Say whether a run is to be made although it has a result: it, or what it needs."""
    return entry.force or any(_is_anew(plan, plan.entry(name)) for name in entry.needs)


def _has_result(submission: _Submission, entry: Entry) -> bool:
    fingerprint, root = entry.facts.fingerprint, submission.plan.project.root
    if fingerprint is None:
        return False
    return submission.services.cache.find(root, fingerprint) is not None


def _prepare(submission: _Submission, entry: Entry) -> ReadyAttempt:
    """Write the job's record and its next attempt."""
    plan, clock = submission.plan, submission.services.clock
    folders = [JobFolder.of(plan.project.scratch, each) for each in fingerprints_of(entry.facts)]
    scheduler = submission.services.scheduler
    asked = entry.request.asked
    advice = advise(starts_of(folders, scheduler), asked, scheduler, submission.snapshot)
    terms = _terms(submission, entry, advice)
    fingerprint = fingerprints_of(entry.facts)[0]
    paths = JobFolder.of(plan.project.scratch, fingerprint)
    paths.folder.mkdir(parents=True, exist_ok=True)
    job = read_job(paths)
    if job is None:
        job = _describe(plan.project, entry, fingerprint, clock())
        write_job(paths, job)
    write_bytes(paths.params, plan.params)
    _link_source(paths, terms.snapshot)
    ids = (submission.results[name].job_id for name in entry.needs)
    after = tuple(dict.fromkeys(job_id for job_id in ids if job_id is not None))
    return prepare_attempt(paths, job, terms, clock=clock, after=after, drop=submission.is_followed)


def _describe(project: Project, entry: Entry, fingerprint: str, now: float) -> Job:
    return Job(
        stage=entry.stage, key=entry.key, name=entry.name, suite=relative_suite(project),
        fingerprint=fingerprint, recipe=entry.facts.recipe, document=entry.facts.document,
        submitted=now, host=socket.gethostname(), user=getpass.getuser(),
    )  # fmt: skip


def _terms(submission: _Submission, entry: Entry, advice: Advice) -> Terms:
    project, cache = submission.plan.project, submission.services.cache
    external = cache.add(project.root, entry.untracked) if entry.untracked else {}
    return Terms(
        snapshot=submission.snapshot,
        scheduler=entry.request.scheduler,
        asked=dataclasses.asdict(advice.applied_to(entry.request.asked)),
        resources=dataclasses.asdict(entry.request.resources),
        upstream={
            path: submission.results[name].fingerprint
            for path, name in entry.facts.upstream.items()
        },
        data_root=str(data_root(project).absolute()),
        external={path: dict(hashed) for path, hashed in external.items()},
        code=submission.tags,
        force=entry.force,
        avoid=advice.avoid,
        notes=advice.notes,
    )


def _link_source(paths: JobFolder, snapshot: str) -> None:
    """Let `src` name the newest attempt's code."""
    target = os.path.relpath(code_folder(paths.scratch, snapshot), paths.folder)
    temporary = paths.folder / f".src.{os.getpid()}"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    if paths.source.is_dir() and not paths.source.is_symlink():
        shutil.rmtree(paths.source)
    temporary.replace(paths.source)


def _hand_over(
    submission: _Submission, ready: list[tuple[Entry, ReadyAttempt]], claims: dict[str, Claim]
) -> None:
    """Give the scheduler what is still claimed, and note what it says."""
    services, results = submission.services, submission.results
    held = []
    for entry, attempt in ready:
        if claims[entry.name].is_held():
            held.append((entry, attempt))
        else:
            detail = "another process took over"
            results[entry.name] = _became(entry, Outcome.WAITING, detail=detail)
    if not held:
        return
    attempts, error = hand_over(
        [attempt for _, attempt in held], services.scheduler, services.patience, services.pause,
        services.clock,
    )  # fmt: skip
    for (entry, given), attempt in zip(held, attempts, strict=True):
        fingerprint = given.paths.fingerprint
        if attempt.job_id is not None:
            became = _became(entry, Outcome.SUBMITTED, attempt.job_id, "", fingerprint)
        elif attempt.refused is not None:
            became = _became(entry, Outcome.REFUSED, None, attempt.refused, fingerprint)
        else:
            became = _became(entry, Outcome.WAITING, None, str(error), fingerprint)
        results[entry.name] = became


def _is_to_be_replaced(entry: Entry, report: JobReport) -> bool:
    """Say whether a live job is the one that the plan replaces, and still has not begun.

    Another client may have replaced it since the plan was made, or what it waited for is there.
    """
    planned = entry.report.attempt if entry.report is not None else None
    newest, queued = report.attempt, report.queued
    if entry.action is not Action.REPLACE or planned is None or newest is None or queued is None:
        return False
    return newest.token == planned.token and queued.phase is JobPhase.WAITING


def _levels(plan: Plan) -> Iterable[list[Entry]]:
    """Return the runs that have to be looked at, in groups that need only groups before."""
    depths: dict[str, int] = {}
    groups: dict[int, list[Entry]] = {}
    for entry in plan.entries:
        if entry.action is Action.NOTHING:
            continue
        depths[entry.name] = 1 + max((depths[name] for name in entry.needs), default=-1)
        groups.setdefault(depths[entry.name], []).append(entry)
    return [groups[depth] for depth in sorted(groups)]
