"""Stochastic depth whose draws are functions of seed, step, view and sample.

timm's layer draws from a generator of the process: two processes would drop what one does not.
"""

import torch
from torch import Tensor

from asl_core.protocol import Draw
from asl_core.randomness import derive_seed, uniform


def draw_drop_path(
    indices: Tensor, draw: Draw, depth: int, rate: float, view: int
) -> Tensor | None:
    """Draw what both branches of every block are multiplied with: 0 or 1 / (1 - its rate).

    The rate grows linearly from 0 at the first block. None where nothing is dropped.

    Shape:
        - indices: (B,). Output: (depth, 2, B).
    """
    if rate == 0:
        return None
    rates = torch.linspace(0, rate, depth, device=indices.device)[:, None]  # (depth, 1)
    seed = derive_seed(draw.seed, "drop_path", draw.step, view)
    kept = uniform(seed, indices, (depth, 2)) >= rates  # (B, depth, 2)
    return (kept / (1 - rates)).permute(1, 2, 0)


def joined(kept: list[Tensor | None]) -> Tensor | None:
    """Put the draws of several views side by side, as their images are stacked."""
    present = [keep for keep in kept if keep is not None]
    return torch.cat(present, dim=2) if present else None
