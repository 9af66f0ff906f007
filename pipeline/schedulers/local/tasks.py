"""The processes of a job: started by its keeper, or found again by a later one."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import psutil

from pipeline.schedulers.local.jobs import PoolJob
from pipeline.schedulers.local.locks import try_lock
from pipeline.schedulers.local.machine import INSIDE
from pipeline.schedulers.variables import JOB_CPUS, JOB_ID, JOB_NODES, JOB_RESTARTS, NODE

HELD_BACK = (signal.SIGUSR1, signal.SIGUSR2)
"""Warnings. They would end a process that has no handlers for them yet, and stay pending."""

PORTS = (20_000, 32_000)
"""Below the ports that Linux hands out by itself."""

SAME_S = 5.0
"""When a process was made is known from the clock, which may be set meanwhile."""

PEERS_S = 60.0
"""How long some tasks may outlive others that nobody can ask how they ended."""

_CLEARED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", JOB_CPUS, JOB_ID,
            JOB_NODES, JOB_RESTARTS, NODE)  # fmt: skip
"""Of the job from which this one was submitted."""


class Tasks(Protocol):
    """The processes of a job."""

    def are_alive(self) -> bool:
        """Say whether any lives."""
        ...

    def have_lost_one(self) -> bool:
        """Say whether the others should end because one has."""
        ...

    def code(self) -> int | None:
        """Return how they ended when none lives any more, as an `Ending` has it."""
        ...

    def send(self, number: int) -> None:
        """Send a signal to those that live."""
        ...


class OwnTasks:
    """Tasks that this process starts.

    Args:
        job: Which has its slots.
        environment: What its submitter had.
        descriptors: Locks that they inherit.

    Raises:
        OSError: They cannot be started; those that were are killed.
    """

    def __init__(
        self, job: PoolJob, environment: Mapping[str, str], descriptors: Sequence[int]
    ) -> None:
        self._failed: int | None = None
        self._processes: list[subprocess.Popen[bytes]] = []
        port = _free_port(job)
        try:
            for rank in range(job.tasks):
                there = task_environment(job, environment, rank, port)
                self._processes.append(_start(job, rank, there, descriptors))
        except OSError:
            self.send(signal.SIGKILL)
            for process in self._processes:
                process.wait()
            raise

    def recorded(self) -> tuple[tuple[int, float], ...]:
        """Return their process ids and when each was made."""
        found: list[tuple[int, float]] = []
        for process in self._processes:
            with contextlib.suppress(psutil.Error):
                found.append((process.pid, psutil.Process(process.pid).create_time()))
        return tuple(found)

    def are_alive(self) -> bool:
        codes = [process.poll() for process in self._processes]
        bad = [code for code in codes if code]
        if self._failed is None and bad:
            self._failed = min(bad)  # of several at once a signal is the cause, not the outcome
        return None in codes

    def have_lost_one(self) -> bool:
        return self._failed is not None

    def code(self) -> int | None:
        return self._failed or 0

    def send(self, number: int) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(number)


class FoundTasks:
    """Tasks whose keeper was killed; how they end nobody can tell.

    Args:
        job: As its file has it.
        lock: File that all its processes have locked.
    """

    def __init__(self, job: PoolJob, lock: Path) -> None:
        self._job, self._lock = job, lock
        self._lost_at: float | None = None

    def are_alive(self) -> bool:
        descriptor = try_lock(self._lock)
        if descriptor is None:
            return True
        os.close(descriptor)
        return False

    def have_lost_one(self) -> bool:
        living = len(self._living())
        if not 0 < living < len(self._job.processes):
            return False
        self._lost_at = self._lost_at or time.monotonic()
        return time.monotonic() - self._lost_at > PEERS_S

    def code(self) -> int | None:
        return None

    def send(self, number: int) -> None:
        chosen = self._living()
        if number == signal.SIGKILL or not chosen:
            chosen = holders(self._lock, self._job.job_id)
        for pid in chosen:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)

    def _living(self) -> list[int]:
        return living(self._job)


def living(job: PoolJob) -> list[int]:
    """Return the process ids of the tasks that a job's file names and that still are the same."""
    found: list[int] = []
    for pid, made in job.processes:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            same = abs(process.create_time() - made) < SAME_S
            if same and process.status() != psutil.STATUS_ZOMBIE:
                found.append(pid)
    return found


def holders(lock: Path, job_id: str) -> list[int]:
    """Return the processes of a job, its tasks' children too, that have a file open.

    Others may look at the file for a moment: they are no job's, or another's.
    """
    try:
        wanted = lock.stat()
    except OSError:
        return []
    marker = f"{JOB_ID}={job_id}".encode()
    return [
        int(folder.name)
        for folder in Path("/proc").glob("[0-9]*")
        if _has_open(folder, (wanted.st_dev, wanted.st_ino)) and marker in _environment_of(folder)
    ]


def _has_open(process: Path, file: tuple[int, int]) -> bool:
    with contextlib.suppress(OSError):
        for link in (process / "fd").iterdir():
            with contextlib.suppress(OSError):
                found = link.stat()
                if (found.st_dev, found.st_ino) == file:
                    return True
    return False


def _environment_of(process: Path) -> list[bytes]:
    with contextlib.suppress(OSError):
        return (process / "environ").read_bytes().split(b"\0")
    return []


def kill_what_is_left(lock: Path, job_id: str, seconds: float = 5.0) -> None:
    """Kill the processes that a job's tasks have left and that would keep its slots."""
    give_up = time.monotonic() + seconds
    while (descriptor := try_lock(lock)) is None and time.monotonic() < give_up:
        for pid in holders(lock, job_id):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)
    if descriptor is not None:
        os.close(descriptor)


def task_environment(
    job: PoolJob, environment: Mapping[str, str], rank: int, port: int
) -> dict[str, str]:
    """Return what a task finds in its environment.

    Args:
        job: Which has its slots.
        environment: What its submitter had.
        rank: Of the task.
        port: At which the first task listens.
    """
    outer = {name: value for name, value in environment.items() if name not in _CLEARED}
    ranks = {} if job.tasks == 1 else {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(job.tasks),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    return {"OMP_NUM_THREADS": str(job.cpus)} | outer | ranks | {
        "CUDA_VISIBLE_DEVICES": ",".join(job.gpu_names()), INSIDE: ",".join(job.usable_gpus),
        JOB_ID: job.job_id, JOB_NODES: job.host, NODE: job.host,
        JOB_RESTARTS: str(job.restarts), JOB_CPUS: str(job.cpus),
    }  # fmt: skip


def _start(
    job: PoolJob, rank: int, environment: Mapping[str, str], descriptors: Sequence[int]
) -> "subprocess.Popen[bytes]":
    logs = Path(job.folder) / "log"
    logs.mkdir(parents=True, exist_ok=True)
    script = "\n".join(["set -e", *job.setup, 'exec "$@"'])  # the task is the command, not a shell
    with (logs / f"{job.job_id}_{rank}.log").open("ab") as log:
        return subprocess.Popen(
            ["bash", "-c", script, "job", *job.command], stdin=subprocess.DEVNULL, stdout=log,
            stderr=log, env=dict(environment), cwd=logs, start_new_session=True,
            pass_fds=descriptors, preexec_fn=_hold_back,
        )  # fmt: skip


def _hold_back() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, HELD_BACK)


def _free_port(job: PoolJob) -> int:
    """Return a port that nobody listens at; another one for each start."""
    numbers = random.Random(f"{job.job_id} {job.restarts} {time.time_ns()}")
    while True:
        port = numbers.randrange(*PORTS)
        with contextlib.suppress(OSError), socket.socket() as tried:
            tried.bind(("127.0.0.1", port))
            return port
