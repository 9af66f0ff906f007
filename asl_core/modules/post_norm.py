"""The Transformer layer as first published: norms behind the sums, ReLU, dropout."""

from timm.layers.attention import Attention
from torch import Tensor, nn

from asl_core.modules.encoder import LayerNorm


class PostNormLayer(nn.Module):
    r"""One encoder layer of "Attention is all you need" (Vaswani et al., 2017).

    .. math::
        y = \mathrm{LN}(x + \mathrm{Dropout}(\mathrm{MultiHead}(x))), \quad
        z = \mathrm{LN}(y + \mathrm{Dropout}(\max(0, y W_1 + b_1) W_2 + b_2))

    Sections 3.1-3.3 and 5.4 there: projections of the attention have no biases, and dropout is on
    the output of each part alone. What is dropped comes from the caller.

    Args:
        width: D.
        num_heads: Heads of the attention.
        mlp_ratio: Inner width of the second part over D.

    Shape:
        - x: (B, T, D). kept: what the outputs of the two parts are multiplied with, (2, B, T, D);
          absent: nothing is dropped. Output: (B, T, D).
    """

    def __init__(self, width: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.attn = Attention(width, num_heads, qkv_bias=False, proj_bias=False)
        self.norm1 = LayerNorm(width)
        inner = int(width * mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(width, inner), nn.ReLU(), nn.Linear(inner, width))
        self.norm2 = LayerNorm(width)

    def forward(self, x: Tensor, kept: Tensor | None = None) -> Tensor:
        """Attend, then transform each token."""
        first, second = (1.0, 1.0) if kept is None else kept
        y = self.norm1(x + self.attn(x) * first)
        return self.norm2(y + self.mlp(y) * second)
