"""Set going what can go: called by whoever submits or asks, and by every keeper now and then.

There is no daemon: after all keepers were killed, or the machine was started anew, the next
command that asks for the queue starts the jobs that wait. A job whose processes are all gone and
that has not said how it ended waits again; one that lives without its keeper gets a new one.
"""

import contextlib
import dataclasses
import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pipeline
from pipeline.schedulers.local.folder import PoolFolder
from pipeline.schedulers.local.jobs import (
    CANCEL,
    CANCELLED,
    PENDING,
    STARTING,
    Ending,
    PoolJob,
    Readiness,
    after_ending,
    end,
    put_back,
)
from pipeline.schedulers.local.locks import try_lock
from pipeline.schedulers.local.machine import boot_id, this_host
from pipeline.schedulers.local.slots import free_slots

KEEPER = "pipeline.schedulers.local.keeper"
START_PAUSE_S = 10.0
"""Until a job is tried again whose keeper did not start."""


def dispatch(pool: PoolFolder) -> None:
    """Look after jobs that lost their keeper, and start what there is room for.

    Raises:
        SchedulerError: The pool cannot be read, or others are busy with it for a minute.
        OSError: It cannot be written.
    """
    with pool.locked():
        for job in _ours(pool.jobs()):
            if job.is_live:
                _look_after(pool, job)
        _start_waiting(pool)


def _ours(jobs: Sequence[PoolJob]) -> list[PoolJob]:
    """Return this user's jobs on this machine; the others' processes are not seen from here."""
    host, uid = this_host(), os.getuid()
    return [job for job in jobs if job.host == host and job.uid == uid]


def _look_after(pool: PoolFolder, job: PoolJob) -> None:
    """See to a job that runs, as far as its file knows, and has no keeper."""
    keeper = try_lock(pool.keeper_lock(job.job_id))
    if keeper is None:
        return
    try:
        tasks = try_lock(pool.tasks_lock(job.job_id))
        if tasks is None:
            with contextlib.suppress(OSError):  # the next to look tries again
                _start_keeper(pool, job, keeper, None, [])
            return
        os.close(tasks)
        pool.write(_after_disappearing(pool, job))
    finally:
        os.close(keeper)


def _after_disappearing(pool: PoolFolder, job: PoolJob) -> PoolJob:
    """Return what becomes of a job none of whose processes is left."""
    now = time.time()
    if job.order == CANCEL:
        return end(job, CANCELLED, "", now)
    if job.state == STARTING:
        why = f"its keeper did not start, see {pool.log(job.job_id)}"
        return dataclasses.replace(  # nothing of it has run: that is no restart
            job, state=PENDING, reason=why, not_before=now + START_PAUSE_S, boot="", started=None,
            slots=(),
        )  # fmt: skip
    if job.boot != boot_id():
        return put_back(job, "the machine was started anew", now, crashed=False)
    return after_ending(job, Ending(code=None), now)


def _start_waiting(pool: PoolFolder) -> None:
    jobs = pool.jobs()
    readiness = Readiness(jobs)
    waiting = [job for job in _ours(jobs) if job.state == PENDING]
    for folder in dict.fromkeys(job.slots_folder for job in waiting):
        those = [job for job in waiting if job.slots_folder == folder]
        ready = [job for job in those if not readiness.obstacle(job, time.time())]
        if ready:
            names = (name for job in ready for name in (*job.gpu_choice, *job.cpu_choice))
            with free_slots(Path(folder), dict.fromkeys(names)) as free:
                _start_in_order(pool, ready, readiness, free)


def _start_in_order(
    pool: PoolFolder, ready: Sequence[PoolJob], readiness: Readiness, free: dict[str, int]
) -> None:
    """Start jobs one after the other; what an earlier one lacks, no later one gets."""
    for job in ready:
        if readiness.obstacle(job, time.time()):  # max_running is reached by now
            continue
        gpus = [name for name in job.gpu_choice if name in free][: job.gpus]
        cpus = [name for name in job.cpu_choice if name in free][: job.cpus_needed]
        lacks_gpus, lacks_cpus = len(gpus) < job.gpus, len(cpus) < job.cpus_needed
        if lacks_gpus or lacks_cpus:
            held_back = [*(gpus if lacks_gpus else []), *(cpus if lacks_cpus else [])]
            for name in held_back:
                del free[name]
            continue
        slots = {name: free.pop(name) for name in (*gpus, *cpus)}
        if _start(pool, job, slots):
            readiness.count(job)


def _start(pool: PoolFolder, job: PoolJob, slots: dict[str, int]) -> bool:
    """Start a job's keeper with the slots it takes; say whether that was possible."""
    with _locks(pool, job) as locks:
        if locks is None:  # something of an earlier start is still there
            return False
        keeper, tasks = locks
        now = time.time()
        starting = dataclasses.replace(
            job, state=STARTING, reason="", boot=boot_id(), started=now, slots=tuple(slots),
            processes=(),
        )  # fmt: skip
        pool.write(starting)
        try:
            _start_keeper(pool, starting, keeper, tasks, list(slots.values()))
        except OSError as error:
            waits = {"reason": f"no keeper: {error}", "not_before": now + START_PAUSE_S}
            pool.write(dataclasses.replace(job, **waits))
            return False
    return True


class _locks:
    """Both locks of a job for the duration of a block; None where somebody has one."""

    def __init__(self, pool: PoolFolder, job: PoolJob) -> None:
        self._paths = (pool.keeper_lock(job.job_id), pool.tasks_lock(job.job_id))
        self._taken: list[int] = []

    def __enter__(self) -> tuple[int, int] | None:
        for path in self._paths:
            descriptor = try_lock(path)
            if descriptor is None:
                return None
            self._taken.append(descriptor)
        return self._taken[0], self._taken[1]

    def __exit__(self, *_: object) -> None:
        for descriptor in self._taken:
            os.close(descriptor)


def _start_keeper(
    pool: PoolFolder, job: PoolJob, keeper: int, tasks: int | None, slots: list[int]
) -> None:
    """Start the process that looks after a job; it is nobody's child and outlives its maker.

    Args:
        pool: The pool.
        job: Which has a number of slots, or has them already.
        keeper: Descriptor of the keeper's lock.
        tasks: Of the tasks'; None where they live already.
        slots: Of what the job takes.

    Raises:
        OSError: It cannot be started.
    """
    held = {"keeper": keeper, "tasks": tasks, "slots": slots}
    root = str(Path(pipeline.__file__).parents[1])
    before = os.environ.get("PYTHONPATH", "").split(os.pathsep)  # a keeper has the root in it
    path = os.pathsep.join(dict.fromkeys(filter(None, [root, *before])))
    command = [sys.executable, "-P", "-m", KEEPER, str(pool.folder), job.job_id, json.dumps(held)]
    with pool.log(job.job_id).open("ab") as log:
        done = subprocess.run(
            ["setsid", "--fork", *command], check=False, stdin=subprocess.DEVNULL, stdout=log,
            stderr=log, cwd="/", env=os.environ | {"PYTHONPATH": path},
            pass_fds=[fd for fd in (keeper, tasks, *slots) if fd is not None],
        )  # fmt: skip
    if done.returncode != 0:
        raise OSError(errno.ECHILD, "setsid could not start it", command[0])
