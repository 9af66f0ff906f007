"""CAE's regressor: what is hidden asks what is visible, and itself, for its representation."""

import torch
import torch.nn.functional as F
from timm.layers.layer_scale import LayerScale
from timm.layers.mlp import Mlp
from torch import Tensor, nn

from asl_core.modules.encoder import LayerNorm


class CrossAttention(nn.Module):
    """Attention whose queries, keys and values come from different tokens; keys have no bias.

    Source: CAE, `modeling_cae_helper.py`.

    Shape:
        - queries: (B, R, D). keys, values: (B, T, D). Output: (B, R, D).
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width, bias=False)
        self.v = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Weigh the values."""
        # each (B, heads, T, d)
        query, key, value = (
            layer(tokens).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for layer, tokens in ((self.q, queries), (self.k, keys), (self.v, values))
        )
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class RegressorBlock(nn.Module):
    """Cross-attention and an MLP.

        x = norm(x + a * attention(norm_q(x + p_x), norm_k(y + p_y), norm_v(y)))
        x = x + b * mlp(x)

    with y the visible tokens and x. Positions are added to queries and keys, not to values. What
    the MLP adds to is the norm's output, as in the official code, not its input.

    Source: CAE, `modeling_cae_helper.py`.

    Args:
        width: D.
        num_heads: Heads.
        mlp_ratio: Hidden width of the MLP over D.
        layer_scale: Factors a and b at the beginning; absent: there are none.

    Shape:
        - asked, places: (B, R, D), hidden tokens and their positions. visible, visible_places: (B,
          V, D). keep: (2, B), factors of stochastic depth. Output: (B, R, D).
    """

    def __init__(
        self, width: int, num_heads: int, mlp_ratio: float, layer_scale: float | None
    ) -> None:
        super().__init__()
        self.norm_q, self.norm_k, self.norm_v = (LayerNorm(width) for _ in range(3))
        self.attn = CrossAttention(width, num_heads)
        self.norm2 = LayerNorm(width)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.ls1, self.ls2 = (
            nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)
            for _ in range(2)
        )

    def forward(
        self,
        asked: Tensor,
        visible: Tensor,
        places: Tensor,
        visible_places: Tensor,
        keep: Tensor | None = None,
    ) -> Tensor:
        """Ask once."""
        known = torch.cat([visible.to(asked.dtype), asked], dim=1)  # (B, V + R, D)
        known_places = torch.cat([visible_places, places], dim=1)
        found = self.attn(
            self.norm_q(asked + places), self.norm_k(known + known_places), self.norm_v(known)
        )
        first, second = (1.0, 1.0) if keep is None else keep[..., None, None]  # each (B, 1, 1)
        asked = self.norm2(asked + first * self.ls1(found))
        return asked + second * self.ls2(self.mlp(asked))
