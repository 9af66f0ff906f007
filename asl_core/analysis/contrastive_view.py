r"""Section 3.2: the pixel loss of MAE as contrastive learning of patches, Eq. 5-8.

In the order of the paper: Eq. 5 reads the loss as the likelihood of a Gaussian around the
prediction, Eq. 6 balances it over all pseudo labels, Eq. 7 takes these from the batch, and Eq. 8
is what comes out: InfoNCE with squared Euclidean distances, one category for each patch.

The norm of these equations is the sum over the P values of a patch, as the density of Eq. 5 needs
it; :math:`\sigma^2` is then the variance of one value and :math:`\lambda = 2 \sigma^2`. The loss
that is trained, Eq. 1-2, is the mean over the P values. Whoever reads that mean into Eq. 8 means
the temperature :math:`\lambda / P`: the same family of losses, its temperature counted otherwise.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

MAX_DISTANCES = 2**22  # held at a time: 32 MiB of float64, whatever the batch


def maximum_likelihood_variance(pred: Tensor, target: Tensor) -> float:
    """Return the variance under which Eq. 5 makes all targets most likely: their mean square error.

    Shape:
        - pred, target: (..., P).
    """
    return (target.double() - pred.double()).square().mean().item()


def contrastive_loss(distance: Tensor, own: Tensor, temperature: float) -> Tensor:
    r"""Compute Eq. 8 from squared distances.

    .. math::
        -\log \frac{\exp(-\lVert x_p - x_m \rVert^2 / \lambda)}
                   {\sum_{x'_m \in B} \exp(-\lVert x_p - x'_m \rVert^2 / \lambda)}

    Args:
        distance: Of each prediction to each pseudo label of the batch B, its own among them.
        own: Which pseudo label is the prediction's own.
        temperature: :math:`\lambda`, positive.

    Shape:
        - distance: (M, N). own: (M,), int64. Output: (M,), at least 0.
    """
    logits = -distance / temperature
    return logits.logsumexp(dim=1) - logits.gather(1, own[:, None])[:, 0]


class PatchContrast(NamedTuple):
    """Each prediction of a batch among the pseudo labels of this batch.

    Attributes:
        losses: Eq. 8 at each temperature, (T, M).
        retrieved: 1 where the own patch is nearest to the prediction, 0 where another is; where k
            patches of the batch have the same pixels as the own, a guess among them: 1 / k; (M,).
    """

    losses: Tensor
    retrieved: Tensor


def contrast_patches(
    pred: Tensor,
    target: Tensor,
    temperatures: Sequence[float],
    max_distances: int = MAX_DISTANCES,
) -> PatchContrast:
    """Compare every prediction of a batch with the pseudo labels of the whole batch, in float64.

    Goes through the M x M distances in blocks of rows, so that memory does not grow with M^2.

    Args:
        pred: Predictions of the removed patches of some images.
        target: Their own pseudo labels; together the batch B of Eq. 8.
        temperatures: Values of lambda.
        max_distances: How many distances are held at a time.

    Shape:
        - pred, target: (M, P).
    """
    target = target.double()
    alike, counts = _alike(target)
    losses = target.new_empty(len(temperatures), len(target))
    retrieved = target.new_empty(len(target))
    for own, distance in _blocks(pred.double(), target, max_distances):
        for i, temperature in enumerate(temperatures):
            losses[i, own] = contrastive_loss(distance, own, temperature)
        nearest = alike[distance.argmin(dim=1)]
        retrieved[own] = (nearest == alike[own]).double() / counts[nearest]
    return PatchContrast(losses, retrieved)


def squared_distances(pred: Tensor, candidates: Tensor) -> Tensor:
    """Return the squared Euclidean distances: (M, P) and (N, P) to (M, N)."""
    squares = pred.square().sum(dim=1)[:, None] + candidates.square().sum(dim=1)
    return (squares - 2 * pred @ candidates.T).clamp_min(0)


def pearson(x: Tensor, y: Tensor) -> float:
    """Return the linear correlation of two series; nan where one of them is constant.

    Shape:
        - x, y: (M,).
    """
    if x.max() == x.min() or y.max() == y.min():
        return math.nan
    x, y = x.double() - x.double().mean(), y.double() - y.double().mean()
    return (x @ y / (x.norm() * y.norm())).item()


def spearman(x: Tensor, y: Tensor) -> float:
    """Return the correlation of the ranks of two series, equal values sharing their mean rank."""
    return pearson(_ranks(x), _ranks(y))


def _blocks(pred: Tensor, target: Tensor, max_distances: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield rows of the matrix of distances: which, (C,), and to all targets, (C, M)."""
    rows = max(max_distances // len(target), 1)
    for own in torch.arange(len(pred), device=pred.device).split(rows):
        yield own, squared_distances(pred[own], target)


def _alike(target: Tensor) -> tuple[Tensor, Tensor]:
    """Return for each target which set of equal ones it is in, (M,), and the sizes of the sets.

    Blank patches are equal to the bit; which of them counts as nearest would be the rounding's
    choice.
    """
    _, alike, counts = torch.unique(target, dim=0, return_inverse=True, return_counts=True)
    return alike, counts


def _ranks(x: Tensor) -> Tensor:
    """Return ranks from 0, (M,), float64."""
    _, which, counts = torch.unique(x, return_inverse=True, return_counts=True)
    last = counts.cumsum(0) - 1
    return (last - (counts - 1) / 2).double()[which]
