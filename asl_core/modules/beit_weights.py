"""How BEiT's weights begin, which CAE's and SplitMask's do in part."""

import math
from collections.abc import Iterable

import torch
from timm.layers.weight_init import trunc_normal_
from torch import Tensor, nn

from asl_core.modules.encoder import Encoder
from asl_core.modules.positions import sincos_positions

_DEVIATION = 0.02


def trunc_normal(tensor: Tensor) -> Tensor:
    """Fill with normal numbers of deviation .02, cut at one deviation, and return it.

    Source: BEiT, `modeling_pretrain.py`, whose own `trunc_normal_` cuts there.
    """
    return trunc_normal_(tensor, std=_DEVIATION, a=-_DEVIATION, b=_DEVIATION)


def initialise_as_beit(module: nn.Module) -> None:
    """Draw what is in Linears and convolutions, and an encoder's [cls]; biases are zero.

    Linears that write into the residual stream are divided by sqrt(2 l) in the l-th block of an
    encoder, counted from 1.

    Source: BEiT, `_init_weights` and `fix_init_weight`.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            trunc_normal(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    if isinstance(module, Encoder):
        trunc_normal(module.cls_token)
        divide_by_depth(module.blocks)


@torch.no_grad()
def initialise_as_cae(encoder: Encoder) -> None:
    """Draw what CAE's encoder has otherwise than `Encoder` draws it, positions included.

    Linears are Xavier-uniform as MAE's, patch embedding and [cls] as BEiT's, positions have the row
    first.

    Source: CAE, `modeling_cae.py`, whose last initialisation is of Linears alone.
    """
    trunc_normal(encoder.patch_embed.proj.weight)
    nn.init.zeros_(encoder.patch_embed.proj.bias)  # type: ignore[arg-type]
    trunc_normal(encoder.cls_token)
    vit = encoder.vit
    encoder.pos_embed.copy_(sincos_positions(vit.embed_dim, vit.grid_size, row_first=True))


@torch.no_grad()
def divide_by_depth(blocks: Iterable[nn.Module]) -> None:
    """Divide the weights with which a block writes into the residual stream."""
    for number, block in enumerate(blocks, start=1):
        for name in ("attn.proj", "mlp.fc2"):
            block.get_submodule(name).weight.div_(math.sqrt(2 * number))  # type: ignore[operator]
