"""What pre-training is watched for: names of the curves, and what they mean in words.

Standard library only: the log of a run and the tables say the same of the same numbers.
"""

from collections.abc import Mapping, Sequence
from math import sqrt
from statistics import fmean
from typing import NamedTuple

PREFIX = "watch/"
UNTRAINED = "_untrained"
"""Ends the name of what a curve was at step 0: `watch/knn_acc1_cls_untrained`."""

ACCURACIES = {
    "watch/knn_acc1_cls": "k-NN of [cls]",
    "watch/knn_acc1_mean": "k-NN of the mean",
    "watch/probe_acc1_cls": "probe of [cls]",
    "watch/probe_acc1_mean": "probe of the mean",
}
"""Name -> what it is of; percent of held-out training images."""
QUERIES = "watch/query_images"
"""How many images the accuracies are shares of."""
DISTANCE = "watch/prediction_distance"
"""mean |pred_ori - pred_aug| / mean |pred_ori| over the values of the removed patches."""
GRADIENT_SHARE = "watch/alignment_gradient"
"""|gradient of the weighted alignment loss| / |gradient of L_MAE|, on the encoder."""
LOSS_FALL = "watch/loss_fall"
"""See `loss_fall`."""
TITLES = {
    "watch/knn_acc1_cls": "k-NN of [cls] [%]",
    "watch/probe_acc1_cls": "Ridge probe of [cls] [%]",
    "watch/effective_rank_cls": "Effective rank of [cls]",
    "watch/knn_acc1_mean": "k-NN of the mean [%]",
    "watch/probe_acc1_mean": "Ridge probe of the mean [%]",
    "watch/effective_rank_mean": "Effective rank of the mean",
    "watch/token_similarity": "Token similarity",
    DISTANCE: "Distance of the predictions",
    GRADIENT_SHARE: "Gradient, alignment / pixels",
}
"""Curve -> title, in the order in which charts have them."""

COLLAPSED_DISTANCE = 0.01
"""Below it the predictions are one: bfloat16 rounds each by up to 0.004 of its size, so that under
autocast little else is left of their difference. Measured on CIFAR-10 (four blocks of width 64,
patches of 8, batch 128) after 325 steps: AEE 0.004, DLE 0.049."""
COLLAPSED_GRADIENT = 0.1
"""Below it the alignment turns the encoder's gradient by less than 6 degrees. Measured at twelve
blocks of width 64: AEE 0.054 after 851 steps, 0.018 after 1,594; DLE 0.49. In the first hundreds
of steps the pixel loss may be level and its gradient as small: both conditions must hold."""
FLAT_FALL = 0.01
"""Least share by which the loss should fall from the second to the last quarter of the steps. In
the same runs .007 on the plateau at 1, where a patch's mean is all that is predicted, and .025 to
.12 after it."""
LEAST_POINTS = 3
"""Of a quarter, for a mean that is more than the noise of one log line."""

BELOW, LEVEL, COLLAPSED, FLAT = (
    "below the floor", "not clearly above the floor", "collapsed in prediction space", "loss flat",
)  # fmt: skip


class Sign(NamedTuple):
    """A warning: what is wrong, and the numbers that say so."""

    what: str
    numbers: str

    def __str__(self) -> str:
        return f"{self.what}: {self.numbers}"


def find_signs(values: Mapping[str, float]) -> list[Sign]:
    """Say in words what is wrong with a run.

    Args:
        values: By name, the newest of each curve, and of `ACCURACIES` also those of the untrained
            encoder under names that end in `UNTRAINED`. What is missing is not judged.
    """
    return [*_floor_signs(values), *_collapse_signs(values), *_loss_signs(values)]


def loss_fall(points: Sequence[tuple[int, float]]) -> float | None:
    """Return by which share a loss fell from the second to the last quarter of the steps so far.

    The first quarter is left out: there every loss falls.

    Args:
        points: Step and loss, by step.

    Returns:
        None where either quarter has fewer than `LEAST_POINTS`.
    """
    last = points[-1][0] if points else 0
    second = [loss for step, loss in points if last < 4 * step <= 2 * last]
    fourth = [loss for step, loss in points if 4 * step > 3 * last]
    if min(len(second), len(fourth)) < LEAST_POINTS or not fmean(second):
        return None
    return (fmean(second) - fmean(fourth)) / abs(fmean(second))


def _floor_signs(values: Mapping[str, float]) -> list[Sign]:
    """Compare with the untrained encoder; two standard errors are what chance may do."""
    below, level, largest = list[str](), list[str](), 0.0
    count = values.get(QUERIES, 0)
    for name, title in ACCURACIES.items():
        value, floor = values.get(name), values.get(name + UNTRAINED)
        if value is None or floor is None or not count:
            continue
        error = _error_of_difference(value, floor, count)
        if value < floor + 2 * error:
            (below if value < floor else level).append(f"{title} {value:.1f} against {floor:.1f} %")
            largest = max(largest, error)
    against = f" (the untrained encoder; standard error of a difference {largest:.1f})"
    return [
        Sign(what, ", ".join(found) + against)
        for what, found in ((BELOW, below), (LEVEL, level)) if found
    ]  # fmt: skip


def _error_of_difference(first: float, second: float, count: float) -> float:
    """Return the standard error of the difference of two shares of as many images, in percent."""
    variance = sum(share * (100 - share) for share in (first, second)) / count
    return sqrt(variance)


def _collapse_signs(values: Mapping[str, float]) -> list[Sign]:
    distance, gradient = values.get(DISTANCE), values.get(GRADIENT_SHARE)
    if distance is None or gradient is None:
        return []
    if distance >= COLLAPSED_DISTANCE or gradient >= COLLAPSED_GRADIENT:
        return []
    return [Sign(COLLAPSED, (
        f"the two branches' predictions differ by {_percent(distance)} of their size, and the "
        f"alignment's gradient on the encoder is {_percent(gradient)} of the pixel loss's"
    ))]  # fmt: skip


def _loss_signs(values: Mapping[str, float]) -> list[Sign]:
    fall = values.get(LOSS_FALL)
    if fall is None or fall >= FLAT_FALL:
        return []
    moved = f"fell by {_percent(fall)}" if fall >= 0 else f"rose by {_percent(-fall)}"
    return [Sign(FLAT, f"from the second to the last quarter of the steps it {moved}")]


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"
