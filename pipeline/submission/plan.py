"""What a submission would do: which runs are stale and why, what lives already. Reads only."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

from pipeline.config.cluster import ClusterFile, JobRequest, read_cluster
from pipeline.config.job_resources import JobResources
from pipeline.config.params import Params, load_params
from pipeline.config.schedulers import DEFAULT
from pipeline.config.sweeps import is_halved
from pipeline.errors import UserError
from pipeline.execution.inputs import recipe_of, untracked_inputs
from pipeline.jobs.folder import PROVISIONAL, JobFolder
from pipeline.jobs.local_run import host_of_local_run
from pipeline.jobs.verdict import Patience, Verdict
from pipeline.project import Project
from pipeline.results.closure import changed_modules
from pipeline.results.code import Code, read_code
from pipeline.results.documents import Document, code_of, differences, hashes_of, missing_deps
from pipeline.results.port import CodeHistory, ResultCache, StageFacts
from pipeline.results.sources import changed_source
from pipeline.schedulers.port import JobPhase, NoSchedulerError, Scheduler
from pipeline.stages.table import PRETRAIN, SOURCES_FOLDER
from pipeline.submission.job_reports import JobReport, Queue, report_on
from pipeline.submission.put_back import put_back_results
from pipeline.submission.selection import Wanted, choose, survey

TRIES = 3


class Action(StrEnum):
    """What a submission does about a run."""

    NOTHING = "nothing"
    """Its result is there: `dvc repro` adopts it."""
    ATTACH = "attach"
    """A job for it lives."""
    SUBMIT = "submit"
    REPLACE = "replace"
    """Its job waits for one that cannot succeed: end it and submit it again."""
    WAIT = "wait"
    """Not known yet what became of its job."""
    STOPPED = "stopped"
    """It was stopped before its end by its sweep's halving, or what it needs was: left out."""
    RUN = "run here"
    """There is no scheduler on this machine: `dvc repro` runs it."""


@dataclass(frozen=True)
class SubmissionServices:
    """The world outside, as a submission needs it.

    Attributes:
        cache: Which results there are.
        scheduler: Which jobs there are.
        code: Names the commit.
        patience: How long silence means nothing.
        clock: Seconds since 1970.
        pause: Waits so many seconds.
    """

    cache: ResultCache
    scheduler: Scheduler
    code: CodeHistory
    patience: Patience = field(default_factory=Patience)
    clock: Callable[[], float] = time.time
    pause: Callable[[float], None] = time.sleep


@dataclass(frozen=True)
class Entry:
    """One run of a plan.

    Attributes:
        facts: What DVC knows of it.
        stage: `pretrain`.
        key: `asl`.
        fingerprint: Of its job: DVC's key, or `p-` and the recipe.
        action: What to do.
        why: Why its result is not there; empty if it is.
        detail: What the action rests on.
        request: Who is to run it, and what it asks for.
        needs: Names of the runs whose results it needs and which are not there yet.
        report: The job that lives or has ended under its fingerprint.
        others: Live jobs of the same run under other fingerprints: made from what the params,
            the code or the inputs were.
        force: Run although there is a result.
        halved: It belongs to a sweep whose hopeless runs are stopped.
        untracked: What it reads and DVC does not track: path in the suite -> where it lies.
    """

    facts: StageFacts
    stage: str
    key: str
    fingerprint: str
    action: Action
    why: tuple[str, ...]
    detail: str
    request: JobRequest
    needs: tuple[str, ...]
    report: JobReport | None = None
    others: tuple[tuple[JobReport, tuple[str, ...]], ...] = ()
    force: bool = False
    halved: bool = False
    untracked: Mapping[str, Path] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.facts.name


@dataclass(frozen=True)
class Plan:
    """What a submission would do.

    Attributes:
        project: The project and the suite.
        entries: In topological order.
        code: All of it, as it was when the plan was made.
        params: params.yaml, likewise.
        queue_error: Why the scheduler could not be asked; then nothing can be submitted.
        is_local: There is none to be asked: what is stale is for `dvc repro`.
        scheduler: Who runs jobs, as cluster.yaml names it.
        follow_up: What the job asks for that looks after the others; None: there is none.
    """

    project: Project
    entries: tuple[Entry, ...]
    code: Code
    params: bytes
    queue_error: str | None = None
    is_local: bool = False
    scheduler: str = DEFAULT
    follow_up: JobResources | None = None

    def entry(self, name: str) -> Entry:
        """Return an entry by its name."""
        return next(entry for entry in self.entries if entry.name == name)

    def fingerprint_of(self, name: str) -> str:
        """Return the fingerprint of an entry."""
        return self.entry(name).fingerprint


def make_plan(project: Project, wanted: Wanted, services: SubmissionServices) -> Plan:
    """Find out what is stale, what lives, and what would be submitted.

    Code and parameters are read before and after DVC is asked: what is frozen is what was planned.

    Raises:
        UserError: A name or a file is wrong, or files change all the time.
    """
    put_back_results(project.root, services.cache)
    for _ in range(TRIES):
        code, files = read_code(project.root), _read_files(project)
        params = load_params(project.params_file)
        facts = survey(project, params, wanted, services.cache)
        if (read_code(project.root).digest, _read_files(project)) == (code.digest, files):
            break
    else:
        raise UserError(
            f"files in {project.root} keep changing while they are read; "
            "submit again once they do not"
        )
    forced = set(choose(params, wanted)) if wanted.force else set()
    anew: set[str] = set()
    queue = Queue(services.scheduler)
    live = _live_reports(project, queue, services)
    cluster = read_cluster(project.cluster_file)  # once, and not for each run
    entries: dict[str, Entry] = {}
    for name, known in facts.items():
        if name in forced or anew.intersection(known.upstream.values()):
            anew.add(name)
        entry = _plan_entry(
            project, params, known, entries, cluster, queue, services, anew=name in anew
        )
        others = tuple(
            (report, tuple(differences(report.job.document, known.document)))
            for report in live
            if report.job.name == name and report.paths.fingerprint not in fingerprints_of(known)
        )
        entries[name] = replace(entry, others=others, force=name in forced)
    error = None if queue.error is None else str(queue.error)
    return Plan(
        project, tuple(entries.values()), code, files[0], error, _is_absent(queue),
        cluster.scheduler, _follow_up(cluster, entries.values()),
    )  # fmt: skip


def _follow_up(cluster: ClusterFile, entries: Iterable[Entry]) -> JobResources | None:
    """Return what a follow-up asks for, if cluster.yaml gives it something to do."""
    is_told = cluster.notify.command is not None or cluster.notify.webhook is not None
    asked = [entry.request.asked for entry in entries]
    again = any(each.retries or each.memory_most is not None for each in asked)
    return cluster.follow_up_request() if is_told or again else None


def judge_entry(
    project: Project,
    facts: StageFacts,
    queue: Queue,
    services: SubmissionServices,
    *,
    anew: bool = False,
    halved: bool = False,
) -> tuple[Action, str, JobReport | None]:
    """Decide what to do about a run that has no result: (action, why, the job it rests on).

    A run may live under its key, or under its recipe from the time when its inputs were not there.
    A job's result counts unless the run is to be made `anew`. What was stopped stays so as long as
    its sweep is `halved`.
    """
    reports = [
        report
        for fingerprint in fingerprints_of(facts)
        if (report := _report(project, fingerprint, queue, services)) is not None
    ]
    for report in reports:
        if not anew and _is_result_of(report, facts):
            return Action.NOTHING, "", report
    for report in reports:
        said = f"{report.verdict} {report.finding.detail}".strip()
        if report.verdict is Verdict.ACTIVE:
            return Action.ATTACH, said, report
        if report.verdict is Verdict.BLOCKED:
            return Action.REPLACE, said, report
        if report.verdict in (Verdict.SETTLING, Verdict.UNKNOWN):
            return Action.WAIT, said, report
        if report.verdict is Verdict.STOPPED and halved and not anew:
            return Action.STOPPED, said, report
    if queue.error is not None and not _is_absent(queue):
        return Action.WAIT, "the scheduler does not answer", None
    if facts.fingerprint is not None:
        work = JobFolder.of(project.scratch, facts.fingerprint)
        host = host_of_local_run(work, services.clock(), services.patience.silence_s)
        if host is not None:
            return Action.WAIT, f"runs in a local process on {host}", None
    newest = reports[0] if reports else None
    said = "" if newest is None else f"{newest.verdict} {newest.finding.detail}".strip()
    return Action.RUN if _is_absent(queue) else Action.SUBMIT, said, newest


def _is_absent(queue: Queue) -> bool:
    """Say whether there is no scheduler on this machine."""
    return isinstance(queue.error, NoSchedulerError)


def _is_result_of(report: JobReport, facts: StageFacts) -> bool:
    """Say whether a job has made what a run would make, as far as the run's inputs are known."""
    if report.verdict is not Verdict.SUCCEEDED or report.state is None:
        return False
    return facts.fingerprint in (None, report.state.fingerprint)


def fingerprint_of(report: JobReport) -> str:
    """Return the fingerprint of a job; once it has succeeded, DVC's key of what it has made."""
    made = (
        report.state.fingerprint if report.verdict is Verdict.SUCCEEDED and report.state else None
    )
    return made or report.paths.fingerprint


def fingerprints_of(facts: StageFacts) -> list[str]:
    """Return the fingerprints under which jobs of a run may have been submitted."""
    provisional = PROVISIONAL + facts.recipe
    return [provisional] if facts.fingerprint is None else [facts.fingerprint, provisional]


def _plan_entry(
    project: Project,
    params: Params,
    facts: StageFacts,
    before: dict[str, Entry],
    cluster: ClusterFile,
    queue: Queue,
    services: SubmissionServices,
    *,
    anew: bool,
) -> Entry:
    stage, _, key = facts.name.partition("@")
    needs = tuple(
        name for name in dict.fromkeys(facts.upstream.values())
        if before[name].action is not Action.NOTHING
    )  # fmt: skip
    halved = stage == PRETRAIN.name and is_halved(params.sweeps, key)
    if facts.outputs is not None:
        action, detail, report = Action.NOTHING, "", None
    else:
        action, detail, report = judge_entry(
            project, facts, queue, services, anew=anew, halved=halved
        )
        stopped = next((name for name in needs if before[name].action is Action.STOPPED), None)
        if stopped is not None and action in (Action.SUBMIT, Action.REPLACE, Action.RUN):
            action, detail = Action.STOPPED, f"{stopped} was stopped"
        action = _replace_if_orphaned(action, report, [before[name] for name in needs])
    untracked: Mapping[str, Path] = {}
    if action is not Action.NOTHING:
        untracked = untracked_inputs(project, stage, key, recipe_of(params, stage, key))
    return Entry(
        facts=facts, stage=stage, key=key, untracked=untracked, halved=halved,
        fingerprint=fingerprint_of(report)
        if report is not None and action in (Action.ATTACH, Action.NOTHING)
        else fingerprints_of(facts)[0],
        action=action,
        why=() if action is Action.NOTHING else _why(project, facts, services.cache),
        detail=detail,
        request=cluster.job_request(stage, key or None), needs=needs, report=report,
    )  # fmt: skip


def _replace_if_orphaned(
    action: Action, report: JobReport | None, needs: Sequence[Entry]
) -> Action:
    """Replace a job that waits for one which has ended and is about to be submitted again."""
    queued = report.queued if report is not None else None
    waits = queued is not None and queued.phase is JobPhase.WAITING
    again = any(entry.action in (Action.SUBMIT, Action.REPLACE) for entry in needs)
    return Action.REPLACE if action is Action.ATTACH and waits and again else action


def _why(project: Project, facts: StageFacts, cache: ResultCache) -> tuple[str, ...]:
    """Say why a run has no result."""
    missing = missing_deps(facts.document)
    made = [f"{path} does not exist yet" for path in missing]
    if facts.locked is None:
        return ("never run", *made)
    code = code_of(facts.document)[0]
    changed: list[str] = []
    for text in differences(facts.locked, facts.document):
        if text == code:
            changed.append(_changed_code(project, facts, facts.locked, cache))
        elif text.startswith(f"{SOURCES_FOLDER}/"):
            recorded = hashes_of(facts.locked["deps"]).get(text, {}).get("md5")
            changed += changed_source(project, text, recorded, cache)
        elif text not in missing:
            changed.append(text)
    return (*changed, *made) or ("--force, or its result is not in DVC's cache",)


def _changed_code(project: Project, facts: StageFacts, locked: Document, cache: ResultCache) -> str:
    """Say which modules mean something else than when a run was made, as far as that is known."""
    (path, _), (_, before) = code_of(facts.document), code_of(locked)
    old = cache.read(project.root, before)
    if old is None:
        return path
    names = changed_modules(old, (project.suite / path).read_text(encoding="utf-8"))
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"code of {', '.join(names[:3])}{more}"


def _report(
    project: Project, fingerprint: str, queue: Queue, services: SubmissionServices
) -> JobReport | None:
    paths = JobFolder.of(project.scratch, fingerprint)
    return report_on(
        paths, project.root, queue, services.cache, services.patience, services.clock()
    )


def _live_reports(project: Project, queue: Queue, services: SubmissionServices) -> list[JobReport]:
    """Return reports on all jobs of the suite that wait or run."""
    suite = relative_suite(project)
    beginnings = {line.comment.split(":")[1] for line in queue.live}
    found: list[JobReport] = []
    for beginning in sorted(beginnings):
        for pattern in (f"{beginning}*", f"{PROVISIONAL}{beginning}*"):
            for folder in (project.scratch / "jobs").glob(pattern):
                report = _report(project, folder.name, queue, services)
                if report and report.job.suite == suite and report.verdict is Verdict.ACTIVE:
                    found.append(report)
    return found


def _read_files(project: Project) -> tuple[bytes, bytes]:
    try:
        return project.params_file.read_bytes(), (project.suite / "dvc.yaml").read_bytes()
    except OSError as error:
        raise UserError(
            f"{error.filename}: {error.strerror}; a suite has params.yaml and dvc.yaml"
        ) from error


def relative_suite(project: Project) -> str:
    """Return the suite's folder relative to the root, `.` for the demo."""
    return Path(project.suite).relative_to(project.root).as_posix()
