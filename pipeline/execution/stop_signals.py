"""Signals that ask a process to stop: raised as exceptions, remembered, and held off at its end."""

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

TERMINATING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class Terminated(KeyboardInterrupt):
    """Raised by a stop signal outside the training loop, which has its own way to stop."""


class RaisingHandler:
    """A handler that raises `Terminated` until it is made quiet.

    Attributes:
        quiet: Signals come to nothing; set by who begins to write down how a run ends. It is set
            by an assignment, between which and the `except` before it no handler runs.
    """

    def __init__(self) -> None:
        self.quiet = False

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        if not self.quiet:
            raise Terminated(f"stopped by {signal.Signals(number).name}")


@contextlib.contextmanager
def stop_signals_raise() -> Iterator[RaisingHandler]:
    """Turn signals that ask for a stop into `Terminated` for the duration of the block.

    Within another such block the handler stays what it is, quiet or not.
    """
    installed = signal.getsignal(signal.SIGTERM)
    if isinstance(installed, RaisingHandler):
        yield installed
        return
    handler = RaisingHandler()
    try:
        previous = {number: signal.signal(number, handler) for number in TERMINATING}
    except ValueError:  # not the main thread: Python forbids handlers, tests run here
        yield handler
        return
    try:
        yield handler
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


class StopSignals:
    """The signals that have come so far.

    The training loop and the code around it have handlers of their own; Python writes the number
    of every signal to a pipe before it calls any of them.

    Attributes:
        handler: Raises them.
    """

    def __init__(self, descriptor: int, handler: RaisingHandler) -> None:
        self._descriptor, self.handler = descriptor, handler
        self._names: list[str] = []

    @property
    def names(self) -> tuple[str, ...]:
        """Names in the order in which they came, each once."""
        with contextlib.suppress(BlockingIOError):
            for number in os.read(self._descriptor, 4096):
                name = signal.Signals(number).name
                if number in TERMINATING and name not in self._names:
                    self._names.append(name)
        return tuple(self._names)

    def listen(self) -> None:
        """Let signals raise from here on.

        Raises:
            Terminated: One has come already.
        """
        self.handler.quiet = False
        if self.names:
            raise Terminated(f"stopped by {'+'.join(self.names)}")


@contextlib.contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """Note stop signals for the duration of the block; they raise once `listen` was called."""
    reading, writing = os.pipe()
    for descriptor in (reading, writing):
        os.set_blocking(descriptor, False)
    try:
        previous = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        try:
            with stop_signals_raise() as handler:
                handler.quiet = True
                # before there were handlers, task.py kept them from ending the process
                signal.pthread_sigmask(signal.SIG_UNBLOCK, TERMINATING)
                yield StopSignals(reading, handler)
        finally:
            signal.set_wakeup_fd(previous)
    finally:
        os.close(reading)
        os.close(writing)
