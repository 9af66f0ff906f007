"""Attention maps against what timm's block computes with them."""

import torch

from asl_core.analysis.attention import attention_weights, cls_attention
from asl_core.modules.encoder import Encoder
from asl_core.recipes.models import Vit


def small_encoder() -> Encoder:
    torch.manual_seed(0)
    vit = Vit(image_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2)
    return Encoder(vit).eval().double()


def test_values_weighed_with_the_weights_are_the_output_of_the_block() -> None:
    attention = small_encoder().blocks[0].attn
    tokens = torch.randn(3, 5, 16, dtype=torch.float64)
    weights = attention_weights(attention, tokens)  # (3, 2, 5, 5)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 2, 5, dtype=torch.float64))
    values = attention.qkv(tokens)[..., 32:].unflatten(2, (2, 8))  # (3, 5, heads, 8)
    mixed = torch.einsum("bhij,bjhd->bihd", weights, values).flatten(2)
    torch.testing.assert_close(attention.proj(mixed), attention(tokens))


def test_a_map_is_the_row_of_cls_in_the_last_block_as_a_grid() -> None:
    encoder = small_encoder()
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    maps = cls_attention(encoder, images)
    assert maps.shape == (2, 2, 4, 4)
    block = encoder.blocks[1]
    rows = attention_weights(block.attn, block.norm1(encoder.layers(images)[0]))[:, :, 0]
    torch.testing.assert_close(maps.flatten(2), rows[..., 1:])
