"""DINO's head: an MLP onto the unit sphere, and how near its output is to each prototype."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asl_core.precision import at_least_float32, full_precision


class PrototypeMlp(nn.Module):
    """Linear, GELU, Linear, GELU, Linear, and length 1: (..., D) to (..., C), at least float32."""

    def __init__(self, width: int, hidden: int, bottleneck: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, bottleneck),
        )
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map to the sphere."""
        return F.normalize(at_least_float32(self.layers(x)), dim=-1)


class Prototypes(nn.Module):
    """A Linear without bias whose rows have a length of their own: the gain, 1 at the beginning.

    Args:
        count: K.
        width: C.
        fixed_gain: Whether the gain stays 1.

    Shape:
        - x: (..., C). Output: (..., K), at least float32.
    """

    def __init__(self, count: int, width: int, *, fixed_gain: bool) -> None:
        super().__init__()
        self.direction = nn.Parameter(nn.Linear(width, count, bias=False).weight.detach())
        self.gain = nn.Parameter(torch.ones(count, 1), requires_grad=not fixed_gain)

    def forward(self, x: Tensor) -> Tensor:
        """Return the products with all prototypes."""
        with full_precision(x.device):
            length = self.direction.norm(dim=1, keepdim=True)  # (K, 1)
            return F.linear(x, self.gain * self.direction / length)
