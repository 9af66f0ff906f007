"""The pool of this machine as a scheduler: jobs are files, and run under a keeper each."""

import contextlib
import dataclasses
import os
import signal
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from asl_core.wording import counted
from pipeline.config.job_resources import JobResources, megabytes
from pipeline.schedulers.local.dispatch import dispatch
from pipeline.schedulers.local.folder import PoolFolder
from pipeline.schedulers.local.jobs import (
    CANCEL,
    CANCELLED,
    PENDING,
    REQUEUE,
    RUNNING,
    PoolJob,
    Readiness,
    end,
    explanation,
)
from pipeline.schedulers.local.locks import locks_work
from pipeline.schedulers.local.machine import (
    INSIDE,
    find_gpus,
    memory_megabytes,
    processors,
    this_host,
    usable_gpus,
)
from pipeline.schedulers.local.resources import LocalResources
from pipeline.schedulers.local.slots import VARIABLE as SLOTS
from pipeline.schedulers.local.slots import note_pool, slots_folder
from pipeline.schedulers.local.tasks import living
from pipeline.schedulers.port import (
    BatchJob,
    JobPhase,
    QueuedJob,
    SchedulerError,
    SubmitError,
)

KEPT_S = 24 * 3600.0
"""Jobs that have ended stay so long in the queue at least."""

SILENCE_S = 600.0
"""A keeper on another machine that has not moved for so long is not counted on."""

Found = TypeVar("Found")


class LocalPool:
    """The pool of a project on this machine.

    Args:
        folder: `.asl/pool`.
        environment: Of this process; jobs get that of whoever submits them.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str] | None = None) -> None:
        self.pool = PoolFolder(folder)
        self.environment = os.environ if environment is None else environment

    def submit(self, jobs: Sequence[BatchJob]) -> list[str]:
        """Hand jobs over; those that ask for the same get one number.

        Raises:
            SubmitError: The machine does not have what one asks for: none is taken. Or the disk
                is full: with the ids of those that were taken.
        """
        if not jobs:
            return []
        found = find_gpus()
        described = [self._described(job, found) for job in jobs]
        ids: list[str | None] = [None] * len(jobs)
        try:
            self._check_slots()
            note_pool(slots_folder(self.environment), self.pool.folder)
            with self.pool.locked():
                for positions in _alike(jobs):
                    number = self.pool.take_number()
                    single = len(positions) == 1
                    for index, position in enumerate(positions):
                        job_id = str(number) if single else f"{number}_{index}"
                        self.pool.write_environment(job_id, self.environment)
                        self.pool.write(dataclasses.replace(described[position], job_id=job_id))
                        ids[position] = job_id
        except (OSError, SchedulerError) as error:
            # a job is there when its file is, whole: what has no id was not taken
            raise SubmitError(str(error), ambiguous=False, job_ids=ids) from error
        with contextlib.suppress(OSError, SchedulerError):  # else the next to ask starts them
            self._dispatch()
        return [job_id for job_id in ids if job_id is not None]

    def queue(self) -> list[QueuedJob]:
        """Start what can start, and return this user's jobs.

        Raises:
            SchedulerError: The pool's files cannot be read or written.
        """
        if not self.pool.folder.exists():
            return []
        return _tried(self._queue)

    def cancel(self, job_ids: Sequence[str]) -> None:
        """End jobs; ids of jobs that have ended or are not known are no error.

        Raises:
            SchedulerError: The pool's files cannot be read or written.
        """
        _tried(lambda: self._cancel(set(job_ids)))

    def requeue(self, job_id: str) -> None:
        """Let a job that runs end, and wait under its id.

        Raises:
            SchedulerError: It does not run, is being ended, or asked not to be requeued.
        """
        _tried(lambda: self._requeue(job_id))

    def send_signal(self, job_id: str, name: str) -> None:
        """Send a signal to all tasks of a job of this machine.

        Raises:
            SchedulerError: None of them is there.
        """
        job = _tried(lambda: self.pool.read(job_id))
        pids = living(job) if job is not None and job.host == this_host() else []
        if not pids:
            raise SchedulerError(f"job {job_id} has no process on this machine")
        for pid in pids:
            try:
                os.kill(pid, signal.Signals[f"SIG{name}"])
            except OSError as error:
                raise SchedulerError(f"job {job_id}, process {pid}: {error}") from error

    def explain(self, job_id: str) -> str | None:
        """Return how a job ended, None where it is not known or goes on."""
        with contextlib.suppress(SchedulerError):
            job = self.pool.read(job_id)
            return explanation(job) if job is not None and job.has_ended else None
        return None

    def remove_old_submissions(self, needed: Collection[Path] = ()) -> int:
        """Remove jobs that ended a day ago, if none that waits needs to know how; return how many.

        Raises:
            SchedulerError: The pool's files cannot be read or written.
        """
        if not self.pool.folder.exists():
            return 0
        return _tried(lambda: self._remove_old({path.resolve() for path in needed}))

    def lacking(self, job: BatchJob) -> str | None:
        """Return what this machine lacks for a job, None where it has all."""
        try:
            self._described(job, find_gpus())
        except SubmitError as error:
            return str(error)
        return None

    def _described(self, job: BatchJob, found: Sequence[str]) -> PoolJob:
        """Return a job, without its id, as the pool keeps it.

        Args:
            job: The job.
            found: The machine's GPUs.

        Raises:
            SubmitError: It can never run here: says why.
        """
        asked = job.resources
        if not isinstance(asked, LocalResources):
            # another scheduler's, of a record that was made before cluster.yaml changed
            raise SubmitError(f"{job.name}: its settings are not the pool's", ambiguous=False)
        try:
            gpus = usable_gpus(asked.visible_gpus, found, self.environment)
        except ValueError as error:
            raise SubmitError(f"{job.name}: {error}", ambiguous=False) from error
        slots = processors() if asked.cpu_slots is None else asked.cpu_slots
        if lacking := _lacking(asked, len(gpus), slots):
            text = f"{job.name} asks for {lacking}: change pool: in cluster.yaml"
            raise SubmitError(text, ambiguous=False)
        return PoolJob(
            job_id="0", host=this_host(), uid=os.getuid(), name=job.name, folder=str(job.folder),
            comment=job.comment, command=tuple(job.command), setup=tuple(job.setup),
            after=tuple(job.after), after_any=tuple(job.after_any), tasks=asked.tasks_per_node,
            cpus=asked.cpus, gpus=asked.gpus, usable_gpus=gpus, cpu_slots=slots,
            slots_folder=str(slots_folder(self.environment)), time_s=asked.time_seconds or None,
            warning_s=asked.warning_seconds, grace_s=asked.grace, max_running=asked.max_running,
            max_restarts=asked.max_restarts,
            crash_limit=asked.crash_limit, may_be_requeued=asked.requeue == "allowed",
            submitted=time.time(),
        )  # fmt: skip

    def _check_slots(self) -> None:
        """Make sure that two jobs cannot get one GPU.

        Raises:
            SchedulerError: They could, or the folder cannot be written.
        """
        folder = slots_folder(self.environment)
        remedy = f"set {SLOTS} to a folder on a disk of this machine"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            works = locks_work(folder / "trial")
        except OSError as error:
            raise SchedulerError(f"the pool's slots: {error}; {remedy}") from error
        if not works:
            raise SchedulerError(f"{folder}: what is locked can be locked again; {remedy}")

    def _dispatch(self) -> None:
        """Start what can start. In a job nothing is: its keeper does that, with newer code."""
        if INSIDE not in self.environment:
            dispatch(self.pool)

    def _queue(self) -> list[QueuedJob]:
        self._dispatch()
        jobs = self.pool.jobs()
        readiness = Readiness(jobs)
        return [self._line(job, readiness) for job in jobs if job.uid == os.getuid()]

    def _line(self, job: PoolJob, readiness: Readiness) -> QueuedJob:
        phase, reason = job.phase, job.reason
        waits = phase is JobPhase.WAITING
        if waits:
            obstacle = readiness.obstacle(job, time.time()) or f"waits for {_wanted(job)}"
            reason = f"{reason}; {obstacle}" if reason else obstacle
        silence = self._silence(job)
        if silence is not None:
            phase, reason = JobPhase.UNSETTLED, f"nothing heard of it for {silence:.0f} s"
        elif job.host != this_host() and not job.has_ended:
            reason = f"in the pool of {job.host}" + (f"; {reason}" if reason else "")
        return QueuedJob(
            job.job_id, phase, job.state if job.order is None else f"{job.state}, {job.order}",
            reason, job.comment, nodes=job.host if job.is_live else "", restarts=job.restarts,
            can_never_start=waits and readiness.can_never_start(job),
            never_began=job.state == CANCELLED,
        )  # fmt: skip

    def _silence(self, job: PoolJob) -> float | None:
        """Return for how long a job on another machine shows no sign of life, None where it does.

        Whether its keeper lives is known on its own machine only; elsewhere its lock's time tells.
        """
        if job.host == this_host() or not job.is_live:
            return None
        try:
            moved = self.pool.keeper_lock(job.job_id).stat().st_mtime
        except OSError:
            moved = job.started or 0.0
        silence = time.time() - max(moved, job.started or 0.0)
        return silence if silence > SILENCE_S else None

    def _cancel(self, job_ids: Collection[str]) -> None:
        with self.pool.locked():
            for job in self.pool.jobs():
                if job.job_id not in job_ids or job.has_ended or job.uid != os.getuid():
                    continue
                if job.state == PENDING or self._silence(job) is not None:
                    self.pool.write(end(job, CANCELLED, "", time.time()))
                elif job.order != CANCEL:
                    self.pool.write(dataclasses.replace(job, order=CANCEL))
        self._dispatch()  # one whose keeper was killed gets another, which obeys

    def _requeue(self, job_id: str) -> None:
        with self.pool.locked():
            job = self.pool.read(job_id)
            if job is None or job.state != RUNNING:
                state = "is not known" if job is None else f"is {job.state}"
                raise SchedulerError(f"job {job_id} is not requeued: it {state}")
            if job.order == CANCEL:
                raise SchedulerError(f"job {job_id} is not requeued: it is being cancelled")
            if not job.may_be_requeued:
                raise SchedulerError(f"job {job_id} is not requeued: it asked not to be")
            self.pool.write(dataclasses.replace(job, order=REQUEUE))

    def _remove_old(self, needed: Collection[Path]) -> int:
        removed = 0
        with self.pool.locked():
            jobs = self.pool.jobs()
            asked_for = {job_id for job in jobs if not job.has_ended for job_id in job.after}
            for job in jobs:
                old = job.ended is not None and time.time() - job.ended > KEPT_S
                mine = job.uid == os.getuid() and job.host == this_host()
                kept = job.job_id in asked_for or Path(job.folder).resolve() in needed
                if job.has_ended and old and mine and not kept:
                    removed += self.pool.remove(job.job_id)
            self.pool.remove_halves(KEPT_S)
        return removed


def _alike(jobs: Sequence[BatchJob]) -> Iterator[list[int]]:
    """Yield positions of jobs that differ in name, comment, folder and command only."""
    rest = list(range(len(jobs)))
    while rest:
        first = jobs[rest[0]]
        group = [position for position in rest if _terms(jobs[position]) == _terms(first)]
        yield group
        rest = [i for i in rest if i not in group]


def _terms(job: BatchJob) -> tuple[object, ...]:
    return job.resources, job.setup, job.after, job.after_any


def _lacking(asked: JobResources, gpus: int, cpus: int) -> str | None:
    """Return what is asked for and never there, with what is there."""
    if asked.gpus > gpus:
        return f"{counted(asked.gpus, 'GPU')}, the pool has {gpus}"
    needed = asked.tasks_per_node * asked.cpus
    if needed > cpus:
        return f"{counted(needed, 'CPU slot')}, the pool has {cpus}"
    if asked.memory is not None and megabytes(asked.memory) > memory_megabytes():
        return f"memory {asked.memory}, the machine has {memory_megabytes()}M"
    return None


def _wanted(job: PoolJob) -> str:
    cpus = counted(job.cpus_needed, "CPU slot")
    return f"{counted(job.gpus, 'GPU')} and {cpus}" if job.gpus else cpus


def _tried(act: Callable[[], Found]) -> Found:
    """Do something with the pool's files.

    Raises:
        SchedulerError: It fails; one line.
    """
    try:
        return act()
    except OSError as error:
        raise SchedulerError(f"the pool: {error}") from error
