"""The heads of a linear probe: by pooling, blocks and rate, each as if it were alone."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from asl_core.modules.batch_norm import BatchNorm
from asl_core.modules.encoder import Encoder
from asl_core.precision import full_precision
from asl_core.randomness import derive_seed, seeded_globals
from asl_core.recipes.transfer import LinearProbe
from asl_core.transfer.features import frozen_features
from asl_core.transfer.probe_step import groups_by_rate


class Head(NamedTuple):
    """One classifier: what it reads and how fast it learns."""

    name: str
    pooling: str
    """cls, mean, or both in one vector."""
    blocks: int
    """Features of so many last blocks in one vector."""
    rate: float


def heads_of(recipe: LinearProbe) -> list[Head]:
    """Return a recipe's heads in the order in which the first of equal ones is chosen."""
    if not recipe.grid_rates:
        return [Head(pooling, pooling, 1, recipe.peak_lr) for pooling in recipe.poolings]
    return [
        Head(f"{pooling}{blocks}-{i}", pooling, blocks, rate)
        for pooling in recipe.poolings
        for blocks in recipe.blocks
        for i, rate in enumerate(recipe.rates)
    ]


def poolings_read(recipe: LinearProbe) -> tuple[str, ...]:
    """Return whose features the heads read together."""
    if "both" in recipe.poolings:
        return ("cls", "mean")
    return recipe.poolings


class ProbeHead(nn.Module):
    """BatchNorm (no affine, eps 1e-6, batch statistics in training), then a Linear for each rate.

    The batch is that of all processes.

    The Linears begin alike, each with the weights that it would have alone; what BatchNorm makes
    of the same features is the same for all.

    Source: official MAE `main_linprobe.py`.

    Shape:
        - features: (B, D). Output: a tensor (B, C) for each rate.
    """

    def __init__(self, width: int, num_classes: int, *, seed: int, rates: int = 1) -> None:
        super().__init__()
        self.norm = BatchNorm(width, affine=False, eps=1e-6)
        self.linears = nn.ModuleList()
        for _ in range(rates):
            with seeded_globals(derive_seed(seed, "init")):
                linear = nn.Linear(width, num_classes)
                nn.init.trunc_normal_(linear.weight, std=0.01)
            nn.init.zeros_(linear.bias)
            self.linears.append(linear)

    def forward(self, features: Tensor) -> list[Tensor]:
        with full_precision(features.device):
            normed = self.norm(features.float())
            return [linear(normed) for linear in self.linears]


class ProbeHeads(nn.ModuleDict):
    """All heads of a probe.

    Shape:
        - features: (B, K, D), pooling by pooling as `poolings_read` has them, `max(blocks)` each.
        - Output: (B, C) by the head's name, in the order of `heads_of`.
    """

    def __init__(self, recipe: LinearProbe, width: int, num_classes: int) -> None:
        self.recipe_heads = heads_of(recipe)
        self.poolings, self.blocks = poolings_read(recipe), max(recipe.blocks)
        modules: dict[str, ProbeHead] = {}
        for head in self.recipe_heads:
            key = _module(head)
            if key not in modules:
                inputs = width * head.blocks * (2 if head.pooling == "both" else 1)
                modules[key] = ProbeHead(
                    inputs, num_classes, seed=recipe.seed, rates=len(recipe.rates)
                )
        super().__init__(modules)
        self.rates = recipe.rates

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        scores: dict[str, list[Tensor]] = {}
        for head in self.recipe_heads:
            if _module(head) not in scores:
                vectors = self._vectors(features, head)
                scores[_module(head)] = self[_module(head)](vectors)
        return {
            head.name: scores[_module(head)][self.rates.index(head.rate)]
            for head in self.recipe_heads
        }

    @property
    def names(self) -> list[str]:
        return [head.name for head in self.recipe_heads]

    def read(self, encoder: Encoder, images: Tensor) -> Tensor:
        """Return the features that the heads see of normalised images, (B, K, D)."""
        return frozen_features(encoder, images, self.poolings, self.blocks)

    def groups(self, recipe: LinearProbe) -> list[dict[str, Any]]:
        """Return the optimiser's groups; LARS scales each tensor by its own norms."""
        by_rate = {
            rate: nn.ModuleList(module.linears[i] for module in self.values())  # type: ignore[union-attr, index]
            for i, rate in enumerate(self.rates)
        }
        return groups_by_rate(by_rate, recipe)

    def _vectors(self, features: Tensor, head: Head) -> Tensor:
        """Return what a head reads, (B, D')."""
        poolings = ("cls", "mean") if head.pooling == "both" else (head.pooling,)
        starts = [self.poolings.index(pooling) * self.blocks for pooling in poolings]
        parts = [features[:, start : start + head.blocks].flatten(1) for start in starts]
        # contiguous, as one alone is: strides decide in which order is summed
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0].contiguous()


def _module(head: Head) -> str:
    """Return under which name the heads are that read the same."""
    return head.name.partition("-")[0]
