"""From a few measured steps to hours, storage and a date. Numbers in, numbers out."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Span:
    """Seconds: what is expected, and from where to where it may be."""

    expected: float
    low: float
    high: float

    def __add__(self, other: "Span") -> "Span":
        return Span(self.expected + other.expected, self.low + other.low, self.high + other.high)

    def times(self, factor: float) -> "Span":
        """Return so many times as long."""
        return Span(self.expected * factor, self.low * factor, self.high * factor)


NOTHING = Span(0.0, 0.0, 0.0)


def span_of(seconds: Sequence[float]) -> Span:
    """Return median, lower and upper quartile of a step; half and twice as long for one alone."""
    if len(seconds) < 3:
        middle = statistics.fmean(seconds) if seconds else 0.0
        return Span(middle, middle / 2, middle * 2)
    low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return Span(middle, low, high)


def steps_of(epochs: int, images: int, batch_size: int) -> int:
    """Return the optimiser steps of a run: the last images of an epoch that fill no batch stay."""
    return epochs * max(1, images // batch_size)


@dataclass(frozen=True, kw_only=True)
class Training:
    """What is known of a run that trains.

    Attributes:
        step_s: Seconds of each measured step.
        images: In such a step, over all processes.
        batch_size: In a true one.
        steps: Optimiser steps of the run.
        before_s: From the loaded code to the first step.
        after_s: From the last step to the end, on the slice's test images.
        test_share: Test images over those of the slice.
        checkpoint_s: Of one checkpoint.
        checkpoint_minutes: Between two.
    """

    step_s: Sequence[float]
    images: int
    batch_size: int
    steps: int
    before_s: float
    after_s: float
    test_share: float
    checkpoint_s: float
    checkpoint_minutes: float


def training_span(known: Training) -> Span:
    """Return how long a run takes: a step grows with its images, the rest with the test images."""
    step = span_of(known.step_s).times(known.batch_size / known.images)
    steps = step.times(known.steps)
    interval = max(known.checkpoint_minutes * 60, 1e-9)
    saving = steps.times(known.checkpoint_s / interval)
    after = known.after_s * known.test_share
    around = Span(known.before_s + after, known.before_s + after / 2, known.before_s + after * 2)
    return steps + saving + around


def proportional_span(seconds: float, measured: int, wanted: int) -> Span:
    """Return how long `wanted` images take where `measured` took so many seconds."""
    expected = seconds * wanted / max(measured, 1)
    return Span(expected, expected / 1.5, expected * 1.5)
