"""Attention beside timm's: what it weighs tokens with, and keys without a bias.

timm's fused kernel does not give the weights away.
"""

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block
from torch import Tensor, nn


class QueryKeyValue(nn.Linear):
    """Queries, keys and values in one product, as timm's `qkv`; keys have no bias.

    Source: BEiT, `modeling_finetune.py`.

    Shape:
        - x: (..., D). Output: (..., 3D).
    """

    def __init__(self, width: int) -> None:
        super().__init__(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))

    def forward(self, input: Tensor) -> Tensor:
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        return F.linear(input, self.weight, bias)


def attention_weights(attention: Attention, tokens: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return the weights of every token for every other.

    Shape:
        - tokens: (B, T, D), the attention's input. bias: of its logits, (1, heads, T, T); absent:
          none. Output: (B, heads, T, T), rows sum to 1.
    """
    return _weights_and_values(attention, tokens, bias)[0]


def block_with_weights(block: Block, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Run a block once and return its output and its attention's weights.

    Shape:
        - tokens: (B, T, D). Outputs: (B, T, D) and (B, heads, T, T).
    """
    attention = block.attn
    assert isinstance(attention, Attention)
    weights, values = _weights_and_values(attention, block.norm1(tokens))
    mixed = (weights @ values).transpose(1, 2).flatten(2)  # (B, T, D)
    mixed = attention.proj_drop(attention.proj(attention.norm(mixed)))
    tokens = tokens + block.drop_path1(block.ls1(mixed))
    return tokens + block.drop_path2(block.ls2(block.mlp(block.norm2(tokens)))), weights


def _weights_and_values(
    attention: Attention, tokens: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the weights, (B, heads, T, T), and what they weigh, (B, heads, T, d)."""
    heads, width = attention.num_heads, attention.head_dim
    qkv = attention.qkv(tokens).unflatten(2, (3, heads, width))  # (B, T, 3, heads, d)
    query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, T, d)
    query, key = attention.q_norm(query), attention.k_norm(key)
    logits = query * attention.scale @ key.transpose(-2, -1)
    return torch.softmax(logits if bias is None else logits + bias, dim=-1), value
