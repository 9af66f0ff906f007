"""Carry out a plan: claim, freeze, hand over, each run after those that it needs.

Writes under `.asl`; touches neither the workspace nor dvc.lock. Killed at any moment and called
again, it finds every job that the scheduler has and submits only what is missing.
"""

import dataclasses
import getpass
import logging
import os
import shutil
import socket
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from pipeline.execution.inputs import data_root
from pipeline.jobs.claim import Claim, claim
from pipeline.jobs.folder import JobFolder
from pipeline.jobs.job import Job, Terms, read_job, write_job
from pipeline.results.code import code_folder, freeze
from pipeline.schedulers.port import QueueState, SchedulerError
from pipeline.submission.hand_over import Parcel, hand_over, pack
from pipeline.submission.job_reports import JobReport, Queue
from pipeline.submission.plan import (
    Action,
    Entry,
    Plan,
    Services,
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


def submit(plan: Plan, services: Services) -> list[Submitted]:
    """Submit what a plan says, one level of the DAG after the other.

    Returns:
        What became of each run, in the plan's order.

    Raises:
        SchedulerError: The scheduler cannot be asked; nothing was submitted from then on.
    """
    if plan.queue_error is not None:
        raise SchedulerError(f"{plan.queue_error}; nothing was submitted, try again later")
    return _Submission(plan, services).run()


class _Submission:
    """One call of `submit`."""

    def __init__(self, plan: Plan, services: Services) -> None:
        self.plan, self.services = plan, services
        self.jobs = plan.project.scratch / "jobs"
        self.results: dict[str, Submitted] = {}
        self.snapshot: str | None = None
        self.queued: int | None = None
        self.tags = services.code.tags(plan.project.root)

    def run(self) -> list[Submitted]:
        for entry in self.plan.entries:
            if entry.action is Action.NOTHING:
                self._note(entry, Outcome.DONE)
        for level in _levels(self.plan):
            self._submit_level(level)
        return [self.results[entry.name] for entry in self.plan.entries]

    def _submit_level(self, level: list[Entry]) -> None:
        """Submit runs that do not need one another; wait for those that others submit."""
        give_up = self.services.clock() + self.services.patience.submitted_s
        waiting = [entry for entry in level if not self._hold_back_without_inputs(entry)]
        while waiting:
            waiting = self._try(waiting)
            if not waiting:
                return
            if self.services.clock() > give_up:
                for entry in waiting:
                    detail = entry.detail or "another process is submitting it"
                    self._note(entry, Outcome.WAITING, detail=detail)
                return
            self.services.pause(min(POLL_S, self.services.patience.submitted_s / 5))

    def _hold_back_without_inputs(self, entry: Entry) -> bool:
        """Hold a run back if one that it needs has neither a result nor a job."""
        for name in entry.needs:
            needed = self.results[name]
            if needed.job_id is None and needed.outcome is not Outcome.DONE:
                self._note(entry, Outcome.HELD, detail=f"{name}: {needed.outcome}")
                return True
        return False

    def _try(self, entries: list[Entry]) -> list[Entry]:
        """Claim what can be claimed, look again, hand over; return what is to be tried later."""
        claims: dict[str, Claim] = {}
        later: list[Entry] = []
        try:
            for entry in entries:
                claims |= self._claim(entry)
                if entry.name not in claims:
                    later.append(entry)
            parcels: list[tuple[Entry, Parcel]] = []
            if claims:
                queue = Queue(self.services.scheduler)  # after claiming, or it is of yesterday
                if queue.error is not None:
                    raise queue.error
                for entry in entries:
                    if entry.name in claims:
                        self._decide(entry, queue, parcels, later)
            self._hand_over(parcels, claims)
        finally:
            for held in claims.values():
                held.release()
        return later

    def _claim(self, entry: Entry) -> dict[str, Claim]:
        # by recipe: a run's key and the name it had before its inputs were there are one run
        name = fingerprints_of(entry.facts)[-1]
        held = claim(self.jobs, name, self.services.clock())
        return {} if held is None else {entry.name: held}

    def _decide(
        self, entry: Entry, queue: Queue, parcels: list[tuple[Entry, Parcel]], later: list[Entry]
    ) -> None:
        """Look once more, under the claim, and prepare the run or say why not."""
        project = self.plan.project
        if not entry.force and self._has_result(entry):
            self._note(entry, Outcome.DONE)
            return
        action, detail, report = judge_entry(
            project, entry.facts, queue, self.services, anew=self._is_anew(entry)
        )
        if action is Action.NOTHING and report is not None:
            self._note(entry, Outcome.DONE, fingerprint=fingerprint_of(report))
            return
        if action is Action.ATTACH and report is not None:
            if not _is_to_be_replaced(entry, report):
                fingerprint = report.paths.fingerprint
                self._note(entry, Outcome.ATTACHED, report.job_id, detail, fingerprint)
                return
            action = Action.REPLACE
        if action is Action.WAIT:
            later.append(replace(entry, detail=detail))
            return
        if not self._has_room(entry, queue):
            self._note(
                entry,
                Outcome.HELD,
                detail=f"the queue holds {self.queued} jobs of asl-pipe, max_queued is "
                f"{entry.slurm.max_queued}",
            )
            return
        if action is Action.REPLACE and report is not None and report.job_id is not None:
            self.services.scheduler.cancel([report.job_id])
        parcels.append((entry, self._prepare(entry)))

    def _is_anew(self, entry: Entry) -> bool:
        """Say whether a run is to be made although it has a result: it, or what it needs."""
        return entry.force or any(self._is_anew(self.plan.entry(name)) for name in entry.needs)

    def _has_result(self, entry: Entry) -> bool:
        fingerprint = entry.facts.fingerprint
        if fingerprint is None:
            return False
        return self.services.cache.find(self.plan.project.root, fingerprint) is not None

    def _has_room(self, entry: Entry, queue: Queue) -> bool:
        """Count a run that is about to be handed over, if the queue may hold one more."""
        if self.queued is None:
            self.queued = len(queue.live)
        if self.queued >= entry.slurm.max_queued:
            return False
        self.queued += 1
        return True

    def _prepare(self, entry: Entry) -> Parcel:
        """Write the job's record and its next attempt."""
        project = self.plan.project
        if self.snapshot is None:
            self.snapshot = freeze(self.plan.code, project.scratch)
        fingerprint = fingerprints_of(entry.facts)[0]
        paths = JobFolder.of(project.scratch, fingerprint)
        paths.folder.mkdir(parents=True, exist_ok=True)
        job = read_job(paths)
        if job is None:
            job = self._describe(entry, fingerprint)
            write_job(paths, job)
        write_bytes(paths.params, self.plan.params)
        self._link_source(paths)
        after = [self.results[name].job_id for name in entry.needs]
        return pack(
            paths, job, self._terms(entry), clock=self.services.clock,
            after=tuple(dict.fromkeys(job_id for job_id in after if job_id is not None)),
        )  # fmt: skip

    def _describe(self, entry: Entry, fingerprint: str) -> Job:
        return Job(
            stage=entry.stage, key=entry.key, name=entry.name,
            suite=relative_suite(self.plan.project), fingerprint=fingerprint,
            recipe=entry.facts.recipe, document=entry.facts.document,
            submitted=self.services.clock(), host=socket.gethostname(), user=getpass.getuser(),
        )  # fmt: skip

    def _terms(self, entry: Entry) -> Terms:
        assert self.snapshot is not None
        project = self.plan.project
        upstream = {
            path: self.results[name].fingerprint for path, name in entry.facts.upstream.items()
        }
        external = self.services.cache.add(project.root, entry.untracked) if entry.untracked else {}
        return Terms(
            external={path: dict(hashed) for path, hashed in external.items()},
            snapshot=self.snapshot, resources=dataclasses.asdict(entry.resources),
            slurm=dataclasses.asdict(entry.slurm), upstream=upstream,
            data_root=str(data_root(project).absolute()), code=self.tags, force=entry.force,
        )  # fmt: skip

    def _link_source(self, paths: JobFolder) -> None:
        """Let `src` name the newest attempt's code."""
        assert self.snapshot is not None
        target = os.path.relpath(code_folder(paths.scratch, self.snapshot), paths.folder)
        temporary = paths.folder / f".src.{os.getpid()}"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target)
        if paths.source.is_dir() and not paths.source.is_symlink():
            shutil.rmtree(paths.source)
        temporary.replace(paths.source)

    def _hand_over(self, parcels: list[tuple[Entry, Parcel]], claims: dict[str, Claim]) -> None:
        held = []
        for entry, parcel in parcels:
            if claims[entry.name].is_held():
                held.append((entry, parcel))
            else:
                self._note(entry, Outcome.WAITING, detail="another process took it over")
        if not held:
            return
        services = self.services
        attempts, error = hand_over(
            [parcel for _, parcel in held], services.scheduler, services.patience,
            services.pause, services.clock,
        )  # fmt: skip
        for (entry, parcel), attempt in zip(held, attempts, strict=True):
            fingerprint = parcel.paths.fingerprint
            if attempt.job_id is not None:
                self._note(entry, Outcome.SUBMITTED, attempt.job_id, "", fingerprint)
            elif attempt.refused is not None:
                self._note(entry, Outcome.REFUSED, None, attempt.refused, fingerprint)
            else:
                self._note(entry, Outcome.WAITING, None, str(error), fingerprint)

    def _note(
        self,
        entry: Entry,
        outcome: Outcome,
        job_id: str | None = None,
        detail: str = "",
        fingerprint: str | None = None,
    ) -> None:
        named = fingerprint or entry.fingerprint
        self.results[entry.name] = Submitted(entry.name, named, outcome, job_id, detail)


def _is_to_be_replaced(entry: Entry, report: JobReport) -> bool:
    """Say whether a live job is the one that the plan replaces, and still has not begun.

    Another client may have replaced it since the plan was made, or what it waited for is there.
    """
    planned = entry.report.attempt if entry.report is not None else None
    newest, queued = report.attempt, report.queued
    if entry.action is not Action.REPLACE or planned is None or newest is None or queued is None:
        return False
    return newest.token == planned.token and queued.state == QueueState.PENDING


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
