"""Looks after one job of the pool from its start to its end: `-m ...keeper POOL ID LOCKS`.

Starts the tasks, obeys orders, warns before the time limit and enforces it, writes down how the job
ended and starts what can run next. Its locks are taken by whoever starts it, so that there is no
moment at which a job that begins has none. Killed at any moment it leaves tasks that run on, which
the next to ask for the queue gives a new keeper.
"""

import contextlib
import dataclasses
import json
import logging
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from pipeline.schedulers.local.dispatch import dispatch
from pipeline.schedulers.local.folder import PoolFolder
from pipeline.schedulers.local.jobs import (
    CANCEL,
    CANCELLED,
    FAILED,
    RUNNING,
    STARTING,
    Ending,
    PoolJob,
    after_ending,
    end,
    put_back,
)
from pipeline.schedulers.local.slots import known_pools
from pipeline.schedulers.local.tasks import (
    FoundTasks,
    OwnTasks,
    Tasks,
    kill_what_is_left,
)
from pipeline.schedulers.port import SchedulerError

logger = logging.getLogger(__name__)

Change = Callable[[PoolJob], PoolJob]

POLL_S = 0.2
DISPATCH_S = 5.0
BEAT_S = 30.0
"""How often the keeper's lock gets a new time, by which other machines see that it lives."""
WRITE_PAUSES_S = (1.0, 5.0, 30.0, 120.0)
"""Between attempts to write down how a job ended, on a full disk."""


class Keeper:
    """Looks after one job.

    Args:
        pool: The pool.
        job_id: Of the job.
        keeper: Descriptor of the keeper's lock.
        tasks: Of the lock that all tasks inherit; None where they live already.
        slots: Of what the job takes.
    """

    def __init__(
        self, pool: PoolFolder, job_id: str, keeper: int, tasks: int | None, slots: list[int]
    ) -> None:
        self.pool, self.job_id = pool, job_id
        self._keeper, self._tasks, self._slots = keeper, tasks, slots
        self._told_to_stop = False
        self._past_limit = False
        self._warned = False
        self._limit_at: float | None = None
        self._kill_at: float | None = None
        self._wake, waker = os.pipe()
        for descriptor in (self._wake, waker):
            os.set_blocking(descriptor, False)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        # handlers, for what is ignored would be ignored by the tasks too
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2,
                       signal.SIGCHLD):  # fmt: skip
            signal.signal(number, _nothing)
        signal.signal(signal.SIGTERM, self._on_sigterm)

    def run(self) -> None:
        """Look after the job until it has ended or waits again, then start what comes next."""
        job = self._begin()
        if job is not None:
            tasks = self._tasks_of(job)
            if tasks is not None:
                self._watch(job, tasks)
                ending = Ending(tasks.code(), self._past_limit, self._told_to_stop)
                self._end(ending)
        self._release()
        if not self._told_to_stop:  # with the machine; what waits starts when somebody asks
            self._dispatch()
            if job is not None:
                self._dispatch_others(Path(job.slots_folder))

    def _begin(self) -> PoolJob | None:
        """Note that the job runs; None where it shall not."""
        with self.pool.locked():
            job = self.pool.read(self.job_id)
            if job is None or job.state not in (STARTING, RUNNING):
                return None
            if job.order == CANCEL and self._tasks is not None:
                self.pool.write(end(job, CANCELLED, "", time.time()))
                return None
            if job.state == STARTING:
                job = dataclasses.replace(job, state=RUNNING)
                self.pool.write(job)
            return job

    def _tasks_of(self, job: PoolJob) -> Tasks | None:
        """Start the tasks, or find them; None where they cannot be started."""
        lock = self.pool.tasks_lock(job.job_id)
        if self._tasks is None:
            return FoundTasks(job, lock)
        environment = self.pool.read_environment(job.job_id)
        if environment is None:
            self._write_end(lambda job: end(
                job, FAILED, "its environment is gone; submit it again", time.time()
            ))  # fmt: skip
            return None
        try:
            tasks = OwnTasks(job, environment, [self._tasks, *self._slots])
        except OSError as error:
            why = f"it could not be started: {error}"
            self._write_end(lambda job: put_back(job, why, time.time(), crashed=True))
            return None
        try:
            with self.pool.locked():
                now = self.pool.read(job.job_id) or job
                self.pool.write(dataclasses.replace(now, processes=tasks.recorded()))
        except (OSError, SchedulerError) as error:  # they are found by their lock too
            logger.warning("job %s: %s", job.job_id, error)
        return tasks

    def _watch(self, job: PoolJob, tasks: Tasks) -> None:
        """Return when no task lives any more."""
        dispatched = beaten = time.monotonic()
        if job.time_s is not None and job.started is not None:
            self._limit_at = dispatched + job.started + job.time_s - time.time()
        while tasks.are_alive():
            self._pause()
            now = time.monotonic()
            order = self._order()
            self._mind_the_limit(job, tasks)
            if order is not None or self._told_to_stop or tasks.have_lost_one():
                self._stop(job, tasks)
            if self._kill_at is not None and now > self._kill_at:
                tasks.send(signal.SIGKILL)
            if now - beaten > BEAT_S:
                beaten = now
                os.utime(self._keeper)
            if now - dispatched > DISPATCH_S and not self._told_to_stop:
                dispatched = now
                self._dispatch()

    def _mind_the_limit(self, job: PoolJob, tasks: Tasks) -> None:
        if self._limit_at is None:
            return
        left = self._limit_at - time.monotonic()
        if left < job.warning_s and not self._warned:
            self._warned = True
            tasks.send(signal.SIGUSR2)
        if left < 0 and self._kill_at is None:
            self._past_limit = True
            self._stop(job, tasks)

    def _stop(self, job: PoolJob, tasks: Tasks) -> None:
        """Ask the tasks to end, once; they are killed after a while."""
        if self._kill_at is None:
            self._kill_at = time.monotonic() + job.grace_s
            tasks.send(signal.SIGTERM)

    def _order(self) -> str | None:
        try:
            job = self.pool.read(self.job_id)
        except SchedulerError as error:
            logger.warning("%s", error)
            return None
        # given up from another machine, or removed: nobody would know of it any more
        return CANCEL if job is None or job.has_ended else job.order

    def _end(self, ending: Ending) -> None:
        """Write down how the job ended, and end what its tasks have left."""
        if self._tasks is not None:
            os.close(self._tasks)
            self._tasks = None
        kill_what_is_left(self.pool.tasks_lock(self.job_id), self.job_id)
        self._write_end(lambda job: after_ending(job, ending, time.time()))

    def _write_end(self, change: Change) -> None:
        """Change the job's file, again if the disk is full.

        If it cannot be written at all, the next to look sees that all processes are gone, and lets
        the job begin anew: it finds its result or its checkpoint.
        """
        for pause in (*WRITE_PAUSES_S, None):
            try:
                with self.pool.locked():
                    job = self.pool.read(self.job_id)
                    if job is not None and not job.has_ended:
                        self.pool.write(change(job))
                return
            except (OSError, SchedulerError) as error:
                logger.warning("job %s: its end cannot be written: %s", self.job_id, error)
                if pause is not None and not self._told_to_stop:
                    time.sleep(pause)

    def _release(self) -> None:
        for descriptor in (self._tasks, *self._slots, self._keeper):
            if descriptor is not None:
                os.close(descriptor)
        self._tasks, self._slots = None, []

    def _dispatch(self) -> None:
        try:
            dispatch(self.pool)
        except (OSError, SchedulerError) as error:
            logger.warning("nothing else is started: %s", error)

    def _dispatch_others(self, slots: Path) -> None:
        """Start what waits in other projects for what this job has given back."""
        for folder in known_pools(slots):
            if folder != self.pool.folder:
                with contextlib.suppress(OSError, SchedulerError):
                    dispatch(PoolFolder(folder))

    def _pause(self) -> None:
        """Wait a moment, or until a signal comes."""
        readable, _, _ = select.select([self._wake], [], [], POLL_S)
        if readable:
            os.read(self._wake, 4096)

    def _on_sigterm(self, _number: int, _frame: FrameType | None) -> None:
        self._told_to_stop = True


def _nothing(_number: int, _frame: FrameType | None) -> None:
    """Let the signal wake this process, and no more."""


def main() -> None:
    """Look after the job that the command line names."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # whatever whoever started this had blocked
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    held = json.loads(sys.argv[3])
    pool = PoolFolder(Path(sys.argv[1]))
    Keeper(pool, sys.argv[2], held["keeper"], held["tasks"], held["slots"]).run()


if __name__ == "__main__":
    main()
