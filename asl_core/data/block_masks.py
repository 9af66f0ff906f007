"""Masks of rectangles, drawn from Python's generator, which the loader seeds for each sample."""

import math
import random

import numpy as np
import torch
from torch import Tensor

from asl_core.recipes.views import BlockMask

_ASPECTS = (math.log(0.3), math.log(1 / 0.3))
_TRIES = 10


def block_mask(mask: BlockMask) -> Tensor:
    """Draw which patches are removed: rectangles until the share is reached or none fits.

    Source: BEiT's block-wise masking, as SIM and iBOT use it.

    Shape:
        - Output: (N,), bool, row by row; True where a patch is removed.
    """
    removed = np.zeros((mask.grid_size, mask.grid_size), dtype=bool)
    ratio = random.uniform(*random.choice(mask.ratios))
    wanted = round(ratio * removed.size) if mask.exact else ratio * removed.size
    count = failures = 0
    while count < wanted:
        added = _add_block(removed, wanted - count, mask.smallest)
        failures = 0 if added else failures + 1
        if failures == mask.patience:
            break
        count += added
    if mask.exact:
        visible = np.flatnonzero(~removed).tolist()
        removed.flat[random.sample(visible, int(wanted) - count)] = True
    return torch.from_numpy(removed.flatten())


def _add_block(removed: np.ndarray, most: float, smallest: int) -> int:
    """Remove one rectangle with 1 to `most` patches that are still there; return how many."""
    side = len(removed)
    for _ in range(_TRIES):
        area = random.uniform(smallest, most)
        aspect = math.exp(random.uniform(*_ASPECTS))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if height >= side or width >= side:
            continue
        top, left = random.randint(0, side - height), random.randint(0, side - width)
        block = removed[top : top + height, left : left + width]
        new = block.size - int(block.sum())
        if 0 < new <= most:
            block[:] = True
            return new
    return 0
