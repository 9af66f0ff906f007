"""Attentive probing: learnt queries pool the patches of a frozen encoder, a Linear classifies.

Efficient probing, by "Attention, Please! Revisiting Attentive Probing Through the Lens of
Efficiency" (Psomas et al., arXiv 2506.10178): queries without heads, keys that are the patches
themselves, values by one Linear, then BatchNorm without affine and a Linear, trained by MAE's
linear probe.
"""

from typing import Any

import torch
from torch import Tensor, nn

from asl_core.modules.batch_norm import BatchNorm
from asl_core.modules.encoder import Encoder
from asl_core.precision import full_precision
from asl_core.randomness import derive_seed, seeded_globals
from asl_core.recipes.attentive import AttentiveProbe
from asl_core.transfer.probe_step import groups_by_rate


class AttentiveHead(nn.Module):
    r"""Pool patches by learnt queries and classify.

    .. math::
        a_m = \mathrm{softmax}_n(q_m \cdot x_n / \sqrt{D}), \quad
        p = [V_1 \sum_n a_{1n} x_n, \dots, V_M \sum_n a_{Mn} x_n], \quad
        s = W\,\mathrm{BN}(p) + b

    V_m are the M parts of a (D, D) matrix, each D / M rows. Patches are summed before they are
    multiplied: the same numbers at a fraction of the cost.

    Args:
        width: D.
        num_classes: C.
        queries: M, a divisor of D.
        seed: Of the initial weights: queries normal with deviation .02, V as torch makes it.

    Shape:
        - patches: (B, N, D). Output: (B, C).
    """

    def __init__(self, width: int, num_classes: int, queries: int, *, seed: int) -> None:
        super().__init__()
        with seeded_globals(derive_seed(seed, "init")):
            self.queries = nn.Parameter(torch.randn(queries, width) * 0.02)
            self.values = nn.Linear(width, width, bias=False)
            self.linear = nn.Linear(width, num_classes)
            nn.init.trunc_normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)
        self.norm = BatchNorm(width, affine=False, eps=1e-6)

    def forward(self, patches: Tensor) -> Tensor:
        with full_precision(patches.device):
            return self.linear(self.norm(self.pool(patches.float())))

    def pool(self, patches: Tensor) -> Tensor:
        """Return the pooled patches: (B, N, D) to (B, D)."""
        count, width = self.queries.shape
        attention = (self.queries * width**-0.5 @ patches.transpose(1, 2)).softmax(-1)  # (B, M, N)
        sums = attention @ patches  # (B, M, D)
        parts = self.values.weight.view(count, width // count, width)  # (M, D / M, D)
        return torch.einsum("bmd,med->bme", sums, parts).flatten(1)


class AttentiveHeads(nn.ModuleDict):
    """A head for each rate, each as if it were alone.

    Shape:
        - patches: (B, N, D). Output: (B, C) by rate's place.
    """

    def __init__(self, recipe: AttentiveProbe, width: int, num_classes: int) -> None:
        heads = {
            f"rate{i}": AttentiveHead(width, num_classes, recipe.queries, seed=recipe.seed)
            for i in range(len(recipe.rates))
        }
        super().__init__(heads)

    def forward(self, patches: Tensor) -> dict[str, Tensor]:
        return {name: head(patches) for name, head in self.items()}

    @property
    def names(self) -> list[str]:
        return [*self]

    def read(self, encoder: Encoder, images: Tensor) -> Tensor:
        """Return the patches behind the encoder's norm, without [cls]: (B, N, D)."""
        return encoder(images)[:, 1:]

    def groups(self, recipe: AttentiveProbe) -> list[dict[str, Any]]:
        """Return the optimiser's groups."""
        return groups_by_rate(dict(zip(recipe.rates, self.values(), strict=True)), recipe)
