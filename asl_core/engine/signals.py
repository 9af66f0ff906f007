"""Ask a running loop to stop at the end of its step."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
"""SIGTERM: preemption, scancel; SIGUSR1, SIGUSR2: Slurm's warning before a time limit."""


class StopRequest:
    """Holds the signal that asked for a stop, if one did.

    Attributes:
        number: The signal's; 0 as long as none has come.
    """

    def __init__(self) -> None:
        self.number = 0

    def __bool__(self) -> bool:
        return self.number != 0

    @property
    def signal_name(self) -> str:
        return signal.Signals(self.number).name

    def share(self, number: int) -> None:
        """Take over the signal that another process was sent, unless one has come here too.

        It is sent to this process, for whoever else looks at its signals.
        """
        if not self and threading.current_thread() is threading.main_thread():
            signal.raise_signal(number)
        self.number = self.number or number


@contextlib.contextmanager
def catch_stop_signals() -> Iterator[StopRequest]:
    """Turn stop signals into a request for the duration of the block; a second SIGINT interrupts.

    A signal that the block has not answered with an exception by its end is sent again, to the
    handler from before: it came too late for the block but must not be lost.

    Outside the main thread nothing is caught, since Python forbids it.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def note(number: int, _frame: FrameType | None) -> None:
        if request and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.number = number

    previous = {number: signal.signal(number, note) for number in STOP_SIGNALS}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if request:
        signal.raise_signal(request.number)
