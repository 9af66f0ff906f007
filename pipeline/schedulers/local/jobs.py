"""A job of the pool: what it is, how far it is, and what its ends lead to. Pure."""

import dataclasses
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.schedulers.local.slots import cpu_slot, gpu_slot
from pipeline.schedulers.port import JobPhase

PENDING, STARTING, RUNNING = "PENDING", "STARTING", "RUNNING"
COMPLETED, FAILED, CANCELLED, TIMEOUT = "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"

PHASES = {PENDING: JobPhase.WAITING, STARTING: JobPhase.STARTING, RUNNING: JobPhase.RUNNING} | (
    dict.fromkeys((COMPLETED, FAILED, CANCELLED, TIMEOUT), JobPhase.ENDED)
)

CANCEL, REQUEUE = "cancel", "requeue"
"""Orders to a job that runs."""

INTERRUPTED = 75
"""Exit code of a process that wants to go on later."""

QUICK_S = 60.0
"""A job that dies sooner after its start counts for its `crash_limit`."""


@dataclass(frozen=True, kw_only=True)
class PoolJob:
    """A job of the pool.

    Attributes:
        job_id: `27`, or `27_3`.
        host: The machine whose pool it waits for.
        uid: Of the user.
        name: For people.
        folder: Its record; what it prints goes to `log` there.
        comment: By which it is found again.
        command: What each task executes.
        setup: Lines of shell before that.
        after: Jobs that must have succeeded.
        after_any: Jobs that must have ended, or can never start any more.
        tasks: Number of processes.
        cpus: CPU slots of each task.
        gpus: Of the whole job.
        usable_gpus: Names of those that it may take.
        cpu_slots: How many CPU slots the machine has for it.
        slots_folder: Where the machine's slots are.
        time_s: Limit of one start, None for none.
        warning_s: How long before that it is warned.
        grace_s: Seconds between SIGTERM and SIGKILL.
        max_running: Of the jobs with the same number, so many run at once; None for any.
        max_restarts: How often it may be put back.
        crash_limit: After how many quick deaths in a row it has failed.
        may_be_requeued: Whether it is put back when it asks for that.
        submitted: Seconds since 1970.
        state: One of the words above.
        reason: Why it waits or has ended, for people.
        restarts: How often it was put back.
        crashes: Quick deaths in a row.
        order: What it was asked to do while it ran.
        exit_code: Of the task that decided; negative for a signal.
        not_before: It does not start earlier, in seconds since 1970.
        boot: Start of the machine during which it was started.
        started: Seconds since 1970.
        ended: Seconds since 1970.
        processes: Its tasks: process id and when that was made.
        slots: What it has taken.
    """

    job_id: str
    host: str
    uid: int
    name: str
    folder: str
    comment: str
    command: tuple[str, ...]
    setup: tuple[str, ...]
    after: tuple[str, ...]
    after_any: tuple[str, ...]
    tasks: int
    cpus: int
    gpus: int
    usable_gpus: tuple[str, ...]
    cpu_slots: int
    slots_folder: str
    time_s: int | None
    warning_s: int
    grace_s: int
    max_running: int | None
    max_restarts: int
    crash_limit: int
    may_be_requeued: bool
    submitted: float
    state: str = PENDING
    reason: str = ""
    restarts: int = 0
    crashes: int = 0
    order: str | None = None
    exit_code: int | None = None
    not_before: float = 0.0
    boot: str = ""
    started: float | None = None
    ended: float | None = None
    processes: tuple[tuple[int, float], ...] = ()
    slots: tuple[str, ...] = ()

    @property
    def phase(self) -> JobPhase:
        """How far it is; one that runs and was told to end is neither here nor there."""
        if self.order is not None and self.state in (STARTING, RUNNING):
            return JobPhase.UNSETTLED
        return PHASES[self.state]

    @property
    def has_ended(self) -> bool:
        return PHASES[self.state] is JobPhase.ENDED

    @property
    def is_live(self) -> bool:
        """Whether there are, or were when it was last written, processes of it."""
        return self.state in (STARTING, RUNNING)

    @property
    def number(self) -> int:
        """What the jobs of an array have in common."""
        return int(self.job_id.partition("_")[0])

    @property
    def place(self) -> tuple[int, int]:
        """Its place in the queue: its number, and its index in an array."""
        return self.number, int(self.job_id.partition("_")[2] or 0)

    @property
    def gpu_choice(self) -> list[str]:
        """Slots of the GPUs that it may take."""
        return [gpu_slot(name) for name in self.usable_gpus]

    @property
    def cpu_choice(self) -> list[str]:
        """Slots of the processors that it may take."""
        return [cpu_slot(number) for number in range(self.cpu_slots)]

    @property
    def cpus_needed(self) -> int:
        """CPU slots of all its tasks."""
        return self.tasks * self.cpus

    def gpu_names(self) -> list[str]:
        """Return the names of the GPUs that it has taken."""
        return [name for name in self.usable_gpus if gpu_slot(name) in self.slots]


def as_document(job: PoolJob) -> dict[str, Any]:
    """Return a job as its file has it."""
    return dataclasses.asdict(job)


def from_document(document: Mapping[str, Any]) -> PoolJob:
    """Return a job from what its file says; fields of other versions are left out.

    Raises:
        ValueError: It is no job.
    """
    known = {field.name for field in dataclasses.fields(PoolJob)}
    fields = {name: value for name, value in document.items() if name in known}
    for name in ("command", "setup", "after", "after_any", "usable_gpus", "slots"):
        fields[name] = tuple(fields.get(name, ()))
    fields["processes"] = tuple((pid, made) for pid, made in fields.get("processes", ()))
    try:
        job = PoolJob(**fields)
        _ = job.phase, job.place
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(f"is no job of this pool: {error}") from error
    return job


class Readiness:
    """Which waiting jobs could start if there were room.

    Args:
        jobs: All of the pool, those of other machines and users too.
    """

    def __init__(self, jobs: Sequence[PoolJob]) -> None:
        self._states = {job.job_id: job for job in jobs}
        self._running: dict[int, int] = {}
        for job in jobs:
            if job.is_live:
                self.count(job)

    def count(self, job: PoolJob) -> None:
        """Note that a job runs from now on."""
        self._running[job.number] = self._running.get(job.number, 0) + 1

    def can_never_start(self, job: PoolJob) -> bool:
        """Say whether it waits for what did not succeed, or never will, or is not known."""
        return any(not self._may_succeed(job_id) for job_id in job.after)

    def _may_succeed(self, job_id: str) -> bool:
        needed = self._states.get(job_id)
        if needed is None:
            return False
        if needed.has_ended:
            return needed.state == COMPLETED
        return needed.is_live or not self.can_never_start(needed)

    def _is_over(self, job_id: str) -> bool:
        known = self._states.get(job_id)
        if known is None or known.has_ended:
            return True
        return not known.is_live and self.can_never_start(known)

    def obstacle(self, job: PoolJob, now: float) -> str:
        """Return what keeps a waiting job from starting but for room; empty for nothing."""
        for job_id in job.after:
            needed = self._states.get(job_id)
            if needed is None:
                return f"needs job {job_id}, which is not known"
            if needed.state != COMPLETED:
                return f"needs job {job_id}, which is {needed.state}"
        waited_for = next((job_id for job_id in job.after_any if not self._is_over(job_id)), None)
        if waited_for is not None:
            return f"waits for the end of job {waited_for}"
        if job.max_running is not None and self._running.get(job.number, 0) >= job.max_running:
            return f"max_running is {job.max_running}"
        if now < job.not_before:
            return f"not before {job.not_before - now:.0f} s from now"
        return ""


def put_back(job: PoolJob, why: str, now: float, *, crashed: bool) -> PoolJob:
    """Return a job that waits again, or that has failed because it did so too often.

    Args:
        job: One that ran.
        why: For people.
        now: Seconds since 1970.
        crashed: Nobody wanted it to end.
    """
    quick = crashed and job.started is not None and now - job.started < QUICK_S
    crashes = job.crashes + 1 if quick else 0
    if crashes >= job.crash_limit:
        why = f"{why}; {crashes} times in a row within a minute of its start"
        return end(job, FAILED, why, now)
    if job.restarts >= job.max_restarts:
        why = f"{why} after {job.restarts} restarts; max_restarts is {job.max_restarts}"
        return end(job, FAILED, why, now)
    return dataclasses.replace(
        job, state=PENDING, reason=why, restarts=job.restarts + 1, crashes=crashes, order=None,
        boot="", started=None, processes=(), slots=(),
    )  # fmt: skip


def end(job: PoolJob, state: str, why: str, now: float, code: int | None = None) -> PoolJob:
    """Return a job that has ended for good."""
    return dataclasses.replace(
        job, state=state, reason=why, exit_code=code, order=None, ended=now, processes=(), slots=()
    )


@dataclass(frozen=True)
class Ending:
    """How the tasks of a job have ended.

    Attributes:
        code: Of the first that failed, 0 if none did, None if nobody knows.
        past_limit: They were told to end because their time was up.
        told_to_stop: They were told to end because the machine, or the keeper, is ending.
    """

    code: int | None
    past_limit: bool = False
    told_to_stop: bool = False


def after_ending(job: PoolJob, ending: Ending, now: float) -> PoolJob:
    """Return what becomes of a job whose tasks have ended. What is not known is no success."""
    code = ending.code
    if job.order == CANCEL:
        return end(job, CANCELLED, "", now, code)
    if code == 0:
        return end(job, COMPLETED, "", now, 0)
    if job.order == REQUEUE:
        return put_back(job, "requeued", now, crashed=False)
    if code is None:
        why = "its keeper was killed, so nobody knows how it ended"
        return put_back(job, why, now, crashed=True)
    if ending.told_to_stop:
        return put_back(job, "its keeper was told to stop", now, crashed=False)
    if code == INTERRUPTED:
        return put_back(job, "interrupted", now, crashed=not ending.past_limit)
    if ending.past_limit:
        return end(job, TIMEOUT, f"its limit is {job.time_s} s", now, code)
    if code < 0:
        return put_back(job, f"died by {signal_name(-code)}", now, crashed=True)
    return end(job, FAILED, "", now, code)


def signal_name(number: int) -> str:
    """Return SIGKILL for 9."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def explanation(job: PoolJob) -> str:
    """Return how a job ended in one line: `FAILED, exit code 1`."""
    parts = [job.state]
    if job.exit_code is not None and job.exit_code > 0:
        parts.append(f"exit code {job.exit_code}")
    if job.exit_code is not None and job.exit_code < 0:
        parts.append(signal_name(-job.exit_code))
    return ", ".join([*parts, *filter(None, [job.reason])])
