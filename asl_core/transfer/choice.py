"""Which of several heads counts: decided on training images held out, never on test images."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from asl_core.data.shards import PackedDataset
from asl_core.errors import InputError
from asl_core.randomness import derive_seed, uniform


def draw_order(labels: Tensor, seed: int, purpose: str, *counters: int) -> Tensor:
    """Return each image's place in a random order of its own class, from 0; (N,), int64.

    The draw of an image depends on (seed, purpose, counters, index) alone, so that the images of
    small subsets are among those of larger ones.
    """
    indices = torch.arange(len(labels))
    draws = uniform(derive_seed(seed, purpose, *counters), indices, (1,))[:, 0]  # (N,)
    by_draw = torch.argsort(draws, stable=True)
    order = by_draw[torch.argsort(labels[by_draw], stable=True)]  # class by class, as drawn
    counts = torch.bincount(labels)
    starts = torch.cumsum(counts, 0) - counts
    places = torch.empty_like(indices)
    places[order] = indices - starts[labels[order]]
    return places


def split_held_out(dataset: PackedDataset, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return the indices of the training images that are kept, and of those held out.

    Of each class the share is held out, rounded; a class of one image keeps it.

    Raises:
        InputError: Nothing would be held out.
    """
    labels = torch.from_numpy(np.asarray(dataset.labels))
    wanted = (torch.bincount(labels) * share).round().long()
    held = draw_order(labels, seed, "held_out") < wanted[labels]
    if not bool(held.any()):
        raise InputError(
            f"{share:g} of each class of {dataset.manifest.name} is less than half an image: "
            "nothing could be held out to choose on; set a larger held_out, or leave the grid out"
        )
    return (~held).nonzero()[:, 0], held.nonzero()[:, 0]


def first_best(accuracies: Sequence[float]) -> int:
    """Return the place of the largest, of equal ones the first."""
    return max(range(len(accuracies)), key=lambda i: (accuracies[i], -i))


def edge_of(value: float, values: Sequence[float]) -> int:
    """Return whether what was chosen of several is the first (-1), the last (1), or neither (0).

    At an edge, what lies beyond may be better.
    """
    if len(values) < 2:
        return 0
    return int(value == values[-1]) - int(value == values[0])
