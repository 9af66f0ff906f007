"""MAE's decoder: visible tokens and mask tokens in, predictions of patches out."""

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from asl_core.modules.encoder import LayerNorm, initialise_as_mae
from asl_core.modules.positions import sincos_positions
from asl_core.protocol import Mask
from asl_core.recipes.models import Vit


class Decoder(nn.Module):
    """Lightweight Transformer with fixed positions and a linear prediction head.

    Tokens stay in the order [cls], visible, removed: attention does not care for it once each
    token carries its position, and MAE's way back to the order of the image costs a copy of all
    tokens, forth and back. The head is a method of its own, for the tokens that a loss reads.

    Source: MAE; g in Eq. 1 of the ASL paper.

    Args:
        vit: Sizes.
        depth: Blocks; those of `vit` by default.
        out_dim: Values that the head predicts for a token; a patch's pixels by default.

    Shape:
        - latent: (B, 1 + V, D), [cls] first.
        - Output: (B, 1 + V + R, E), [cls] first, then `mask.ids_keep`, then `mask.ids_removed`.
    """

    pos_embed: Tensor

    def __init__(self, vit: Vit, *, depth: int | None = None, out_dim: int | None = None) -> None:
        super().__init__()
        width = vit.decoder_embed_dim
        self.embed = nn.Linear(vit.embed_dim, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("pos_embed", sincos_positions(width, vit.grid_size), persistent=False)
        self.blocks = nn.ModuleList(
            Block(
                width, vit.decoder_num_heads, vit.head_mlp_ratio, qkv_bias=True,
                norm_layer=LayerNorm,
            )
            for _ in range(depth or vit.decoder_depth)
        )  # fmt: skip
        self.norm = LayerNorm(width)
        self.pred = nn.Linear(width, out_dim or 3 * vit.patch_size**2)
        self.apply(initialise_as_mae)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, latent: Tensor, mask: Mask) -> Tensor:
        """Append a mask token for every removed patch, add positions, decode."""
        positions = self.pos_embed[0, 1:]  # (N, E); that of [cls] is zero
        tokens = self.embed(latent)  # (B, 1 + V, E)
        visible = tokens[:, 1:] + positions[mask.ids_keep]
        removed = self.mask_token + positions[mask.ids_removed]  # (B, R, E)
        parts = [tokens[:, :1].to(visible.dtype), visible, removed]
        tokens = torch.cat(parts, dim=1)  # (B, 1 + V + R, E)
        for block in self.blocks:
            tokens = block(tokens)
        return tokens

    def head(self, tokens: Tensor) -> Tensor:
        """Predict what the tokens stand for: (B, T, E) to (B, T, P), P = 3 p^2 or `out_dim`."""
        return self.pred(self.norm(tokens))
