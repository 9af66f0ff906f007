"""Which images an encoder finds alike: nearest neighbours by the cosine of their vectors."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_TOGETHER = 1024
"""Queries that are compared with all others at once; bounds memory."""


@dataclass(frozen=True)
class Nearest:
    """Neighbours of some images, the nearest first.

    Attributes:
        places: Which of the images they are, (Q, K) int64.
        cosines: How near they are, (Q, K) float64.
    """

    places: Tensor
    cosines: Tensor


def nearest_neighbours(vectors: Tensor, queries: Sequence[int], count: int) -> Nearest:
    """Return the `count` nearest images of each query, itself left out; of fewer images all.

    In float64; of two that are equally near the one that comes first.

    Args:
        vectors: One for each image, (N, D).
        queries: Which of them to find neighbours of.
        count: K at most.
    """
    units = F.normalize(vectors.double(), dim=1)
    count = min(count, len(units) - 1)
    places, cosines = [], []
    for start in range(0, len(queries), _TOGETHER):
        own = torch.as_tensor(queries[start : start + _TOGETHER])
        near = units[own] @ units.T  # (q, N)
        near.scatter_(1, own[:, None], -torch.inf)
        ordered, order = near.sort(dim=1, descending=True, stable=True)
        places.append(order[:, :count])
        cosines.append(ordered[:, :count])
    return Nearest(torch.cat(places), torch.cat(cosines))
