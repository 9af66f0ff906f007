"""Child processes of the runner, one a run, and the signals that are handed to them."""

import contextlib
import ctypes
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType

from pipeline.execution.stop_signals import stop_signals_raise

DONE, A_RUN_FAILED = 0, 1
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
_PARENT_DIES = 1
"""PR_SET_PDEATHSIG of Linux: a run whose runner was killed checkpoints and ends as well."""


@dataclass
class Child:
    """A process that was begun.

    Attributes:
        pid: Its number.
        asked: Signals that asked the runner for a stop; grows.
        code: Its exit code once it has ended; negative: the signal that ended it.
    """

    pid: int
    asked: list[int]
    code: int | None = None
    _told: int = 0

    def poll(self) -> bool:
        """Hand on what was asked; say whether it still runs."""
        ended, status = os.waitpid(self.pid, os.WNOHANG)
        if ended:
            self.code = os.waitstatus_to_exitcode(status)
            return False
        if len(self.asked) > self._told:
            self._told = len(self.asked)
            self.stop()
        return True

    def stop(self) -> None:
        """Ask it to checkpoint after its step and to end."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)


def begin(name: str, action: Callable[[], object], asked: list[int]) -> Child:
    """Do something in a process of its own.

    Args:
        name: What is logged before an exception that it raises.
        action: What it does.
        asked: Signals that ask for a stop, see `noted_signals`.
    """
    sys.stdout.flush()
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return Child(pid, asked)
    code = A_RUN_FAILED
    try:
        os.setsid()  # a terminal's Ctrl-C goes to the runner alone, which hands it on
        for number in STOPPING:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PARENT_DIES, signal.SIGTERM)
        if os.getppid() == parent:
            with stop_signals_raise():
                action()
            code = DONE
    except BaseException:
        logging.getLogger(__name__).exception("%s", name)
    finally:
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


@contextlib.contextmanager
def noted_signals() -> Iterator[list[int]]:
    """Note the signals that ask for a stop, for the duration of the block."""
    asked: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        asked.append(number)

    ignored = {number for number in STOPPING if signal.getsignal(number) is signal.SIG_IGN}  # nohup
    before = {number: signal.signal(number, note) for number in STOPPING if number not in ignored}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
