"""Which signals asked this process to stop, whoever handles them."""

import contextlib
import os
import signal
from collections.abc import Iterator

from pipeline.actions.perform import TERMINATING, stop_signals_raise


class StopSignals:
    """The signals that have come so far.

    The training loop and the code around it have handlers of their own; Python writes the number
    of every signal to a pipe before it calls any of them.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
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


@contextlib.contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """Note stop signals for the duration of the block, and raise `Terminated` for each."""
    reading, writing = os.pipe()
    for descriptor in (reading, writing):
        os.set_blocking(descriptor, False)
    try:
        previous = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        try:
            with stop_signals_raise():
                yield StopSignals(reading)
        finally:
            signal.set_wakeup_fd(previous)
    finally:
        os.close(reading)
        os.close(writing)


@contextlib.contextmanager
def unstoppable() -> Iterator[None]:
    """Let stop signals wait for the end of the block: what is in it takes seconds and is final."""
    previous = {n: signal.signal(n, lambda *_: None) for n in TERMINATING}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
