"""MAE's decoder: visible tokens and mask tokens in, a prediction for every patch out."""

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from asl_core.modules.encoder import LayerNorm, initialise_as_mae
from asl_core.modules.masking import gather_tokens
from asl_core.modules.positions import sincos_positions
from asl_core.recipes.models import Vit


class Decoder(nn.Module):
    """Lightweight Transformer with fixed positions and a linear prediction head.

    Source: MAE; g in Eq. 1 of the ASL paper.

    Shape:
        - latent: (B, 1 + V, D), [cls] first. ids_restore: (B, N).
        - Output: (B, N, P), P = 3 p^2.
    """

    def __init__(self, vit: Vit) -> None:
        super().__init__()
        width = vit.decoder_embed_dim
        self.embed = nn.Linear(vit.embed_dim, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("pos_embed", sincos_positions(width, vit.grid_size), persistent=False)
        self.blocks = nn.ModuleList(
            Block(width, vit.decoder_num_heads, vit.mlp_ratio, qkv_bias=True, norm_layer=LayerNorm)
            for _ in range(vit.decoder_depth)
        )
        self.norm = LayerNorm(width)
        self.pred = nn.Linear(width, 3 * vit.patch_size**2)
        self.apply(initialise_as_mae)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, latent: Tensor, ids_restore: Tensor) -> Tensor:
        """Fill the removed places with the mask token, decode, drop [cls]."""
        tokens = self.embed(latent)  # (B, 1 + V, E)
        batch, num_patches = ids_restore.shape
        num_removed = num_patches + 1 - tokens.shape[1]
        mask_tokens = self.mask_token.to(tokens.dtype).expand(batch, num_removed, -1)
        patches = torch.cat([tokens[:, 1:], mask_tokens], dim=1)
        patches = gather_tokens(patches, ids_restore)  # (B, N, E)
        tokens = torch.cat([tokens[:, :1], patches], dim=1) + self.pos_embed  # type: ignore[operator]
        for block in self.blocks:
            tokens = block(tokens)
        return self.pred(self.norm(tokens[:, 1:]))  # (B, N, P)
