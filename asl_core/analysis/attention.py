"""What [cls] looks at: attention maps of an encoder's last block, as DINO draws them."""

from typing import cast

import torch
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block
from torch import Tensor

from asl_core.modules.attention import attention_weights
from asl_core.modules.encoder import Encoder


@torch.no_grad()
def cls_attention(encoder: Encoder, images: Tensor) -> Tensor:
    """Return the attention of [cls] to the patches in the last block, by head.

    Shape:
        - images: (B, 3, S, S), normalised. Output: (B, heads, G, G); a map sums to at most 1, what
          is missing goes to [cls] itself and to registers.
    """
    tokens = encoder.prepend_cls(encoder.add_positions(encoder.embed(images)))  # (B, 1 + N, D)
    tokens, bias = encoder.insert_registers(tokens), encoder.attention_bias()
    for block in encoder.blocks[:-1]:
        tokens = block(tokens, attn_mask=bias)
    last = cast(Block, encoder.blocks[-1])
    weights = attention_weights(
        cast(Attention, last.attn), last.norm1(tokens), bias
    )  # (B, heads, 1 + R + N, 1 + R + N)
    grid, first = encoder.vit.grid_size, 1 + encoder.vit.registers
    return weights[:, :, 0, first:].unflatten(2, (grid, grid))
