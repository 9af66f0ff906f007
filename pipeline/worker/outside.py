"""The parent of a job's process in a container: `-m pipeline.worker.outside ENTRY ARGUMENT...`.

Starts the image's Python with the arguments. Hands on the signals that ask it to stop, answers what
it asks of the scheduler, and ends as it has ended.

With `--listen SOCKET ENTRY` it only answers, at that socket, until the process inside or its own
parent has ended: where the scheduler enters the container, the job's shell starts this beside it.
"""

import collections
import contextlib
import ctypes
import logging
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from pipeline.errors import AslPipeError
from pipeline.jobs.container import (
    Entry,
    enter_command,
    environment_inside,
    folders_inside,
    lacking,
)
from pipeline.jobs.image import container_tags
from pipeline.schedulers.port import Scheduler
from pipeline.schedulers.relay import (
    PYTHON_VARIABLE,
    READY,
    SOCKET_VARIABLE,
    TAGS,
    answer_all,
)

logger = logging.getLogger("pipeline.worker.outside")

WRONG_INPUT, NOT_FOUND = 2, 127
HANDED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
HELD_BACK = (signal.SIGUSR1, signal.SIGUSR2)
"""Warnings. They would end a process that has no handlers for them yet: they wait until it has."""

BLOCKED = (signal.SIGTERM, *HELD_BACK)
"""For all that starts in the container: a scheduler may signal each process of a job, those too
that keep a mounted image there. Only the runtime and the process inside unblock them, when they
are ready."""

LAST_ANSWER_S = 60.0
"""How long an answer may take that the process inside has not waited for."""

POLL_S = 5.0

_PR_SET_PDEATHSIG = 1


class Inside:
    """The process inside, which gets signals when it is ready for them.

    Args:
        command: What starts it.
        environment: It gets.
        connection: Becomes its standard input.
        mask: Signals that were blocked when this process began.

    Raises:
        OSError: There is no such program.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        connection: socket.socket,
        mask: set[signal.Signals],
    ) -> None:
        self._ready = threading.Event()
        self._waiting: collections.deque[int] = collections.deque()
        # locks that the scheduler has let this process inherit go along
        self._process = subprocess.Popen(
            list(command), env=dict(environment), stdin=connection.fileno(), close_fds=False,
            preexec_fn=_preparation({*mask, *BLOCKED}),
        )  # fmt: skip

    def send(self, number: int, _frame: FrameType | None = None) -> None:
        """Send a signal, now or when it is ready for it."""
        if number in HELD_BACK:
            self._waiting.append(number)
            if self._ready.is_set():
                self._send_waiting()
        else:
            self._send(number)

    def be_ready(self) -> None:
        """Note that it is ready for every signal."""
        self._ready.set()
        self._send_waiting()

    def wait(self) -> int:
        """Wait for its end; return its exit code, negative for a signal."""
        return self._process.wait()

    def _send_waiting(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                self._send(self._waiting.popleft())

    def _send(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)


def main() -> None:
    """Do what the command line says, and exit."""
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    logging.getLogger("pipeline").setLevel(logging.INFO)
    arguments = sys.argv[1:]
    listens = arguments[0] == "--listen"
    mask = set(map(signal.Signals, signal.pthread_sigmask(signal.SIG_BLOCK, HANDED_ON)))
    try:
        if listens:
            code = listen(Path(arguments[1]), Entry.of_text(arguments[2]))
        else:
            code = run(Entry.of_text(arguments[0]), arguments[1:], os.environ, mask)
    except (AslPipeError, OSError, ValueError) as error:
        logger.error("%s", error)
        code = WRONG_INPUT
    leave(code)


def run(
    entry: Entry,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    mask: set[signal.Signals],
) -> int:
    """Run Python in the container to its end; return its exit code, negative for a signal.

    Args:
        entry: What is known of the container.
        arguments: Of Python.
        environment: Of this process.
        mask: Signals that were blocked when it began; those in `HANDED_ON` are now.
    """
    missing = lacking(entry.container)
    if missing is not None:
        logger.error("%s: %s", socket.gethostname(), missing)
        return WRONG_INPUT
    command = enter_command(
        entry.container, _folders(entry, environment), arguments, gpus=entry.gpus
    )
    logger.info("%s", shlex.join(command))
    ours, theirs = socket.socketpair()
    runtime = entry.container.runtime
    inner = environment_inside(environment, runtime, entry.code, entry.python_path)
    inner |= {SOCKET_VARIABLE: "0", PYTHON_VARIABLE: sys.executable}
    try:
        inside = Inside(command, inner, theirs, mask)
    except OSError as error:
        logger.error(
            "%s on %s: %s; load its module in setup of cluster.yaml", command[0],
            socket.gethostname(), error.strerror,
        )  # fmt: skip
        return NOT_FOUND
    theirs.close()
    for number in HANDED_ON:
        signal.signal(number, inside.send)
    answering = threading.Thread(
        target=answer_all, args=(ours, _finder(entry), _also(entry, inside.be_ready)), daemon=True
    )
    answering.start()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDED_ON)
    code = inside.wait()
    answering.join(LAST_ANSWER_S)
    return code


def listen(path: Path, entry: Entry) -> int:
    """Answer the one who connects to a socket, until that one is gone; return the exit code.

    Args:
        path: Of the socket, in a folder of its own, which is removed: here, for when the job ends
            there is no time.
        entry: What is known of the container.

    Raises:
        OSError: It cannot be made.
    """
    parent = os.getppid()
    try:
        connection = _accept(path, lambda: os.getppid() == parent)
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
            path.parent.rmdir()
    if connection is not None:
        answer_all(connection, _finder(entry), _also(entry, lambda: None))
    return 0


def _accept(path: Path, is_wanted: Callable[[], bool]) -> socket.socket | None:
    """Wait for somebody to connect for as long as that is wanted."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        server.settimeout(POLL_S)
        while is_wanted():
            with contextlib.suppress(TimeoutError):
                connection, _ = server.accept()
                connection.settimeout(None)
                return connection
    return None


def leave(code: int) -> NoReturn:
    """End as the process inside has: with its code, or by the signal that has killed it."""
    sys.stdout.flush()
    sys.stderr.flush()
    if code < 0:
        if -code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-code, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [-code])
        os.kill(os.getpid(), -code)
        code = 128 - code
    os._exit(code)


def _folders(entry: Entry, environment: Mapping[str, str]) -> list[Path]:
    from pipeline.results.dvc_folders import dvc_folders

    scratch = Path(entry.scratch)
    return folders_inside(scratch, entry.data_root, dvc_folders(scratch.parent), environment)


def _finder(entry: Entry) -> Callable[[], Scheduler]:
    def find() -> Scheduler:
        from pipeline.schedulers.find import find_scheduler

        return find_scheduler(Path(entry.scratch))

    return find


def _also(entry: Entry, be_ready: Callable[[], None]) -> dict[str, Callable[[], object]]:
    return {READY: be_ready, TAGS: lambda: container_tags(entry.container, Path(entry.scratch))}


def _preparation(mask: set[signal.Signals]) -> Callable[[], None]:
    """Return what the new process does first: block these signals; end when this one is killed."""
    library = ctypes.CDLL(None, use_errno=True)

    def prepare() -> None:
        library.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    return prepare


if __name__ == "__main__":
    main()
