"""Stop signals become requests, and none is lost."""

import contextlib
import os
import signal
from collections.abc import Iterator

import pytest

from asl_core.engine.signals import catch_stop_signals
from asl_core.errors import InterruptedRun


@pytest.fixture
def outside() -> Iterator[list[int]]:
    """Collect the signals that reach the handlers from before."""
    seen: list[int] = []
    numbers = (signal.SIGUSR1, signal.SIGUSR2)
    previous = {n: signal.signal(n, lambda number, _: seen.append(number)) for n in numbers}
    yield seen
    for number, handler in previous.items():
        signal.signal(number, handler)


def test_a_stop_that_the_block_did_not_answer_is_sent_again(outside: list[int]) -> None:
    with catch_stop_signals() as stop:
        signal.raise_signal(signal.SIGUSR2)
        assert stop.signal_name == "SIGUSR2"
        assert outside == []
    assert outside == [signal.SIGUSR2]


def test_a_stop_that_the_block_answered_is_not_sent_again(outside: list[int]) -> None:
    with contextlib.suppress(InterruptedRun), catch_stop_signals():
        signal.raise_signal(signal.SIGUSR2)
        raise InterruptedRun
    assert outside == []


def test_the_signal_of_another_process_arrives_here_too(outside: list[int]) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    previous = signal.set_wakeup_fd(writing)
    try:
        with contextlib.suppress(InterruptedRun), catch_stop_signals() as stop:
            stop.share(signal.SIGUSR1)
            stop.share(signal.SIGUSR2)  # one has come already
            raise InterruptedRun
        assert os.read(reading, 9) == bytes([signal.SIGUSR1])
    finally:
        signal.set_wakeup_fd(previous)
        os.close(reading)
        os.close(writing)
    assert stop.signal_name == "SIGUSR1"
    assert outside == []


def test_nothing_is_sent_when_no_stop_was_asked_for(outside: list[int]) -> None:
    with catch_stop_signals() as stop:
        pass
    assert not stop
    assert outside == []
