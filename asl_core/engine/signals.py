"""Ask a running loop to stop at the end of its step."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
"""SIGTERM: preemption, scancel; SIGUSR1, SIGUSR2: Slurm's warning before a time limit."""


class StopRequest:
    """Holds the signal that asked for a stop, if one did."""

    def __init__(self) -> None:
        self.signal_name: str | None = None

    def __bool__(self) -> bool:
        return self.signal_name is not None


@contextlib.contextmanager
def catch_stop_signals() -> Iterator[StopRequest]:
    """Turn stop signals into a request for the duration of the block; a second SIGINT interrupts.

    Outside the main thread nothing is caught, since Python forbids it.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def note(number: int, _frame: FrameType | None) -> None:
        if request and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.signal_name = signal.Signals(number).name

    previous = {number: signal.signal(number, note) for number in STOP_SIGNALS}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
