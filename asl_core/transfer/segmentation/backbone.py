"""The plain ViT as a segmenter's backbone: relative positions, four taps, four scales.

Source: the public reproductions of MAE's ADE20K result (BEiT's segmentation code with MAE's
weights): [cls] stays inside, each block has a bias and factors of its own, nothing is normed at the
end.
"""

import copy
from typing import cast

import torch
from timm.layers.layer_scale import LayerScale
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from asl_core.errors import InputError
from asl_core.modules.encoder import Encoder
from asl_core.modules.relative_bias import RelativePositionBias

NUM_SCALES = 4


def tap_indices(depth: int) -> tuple[int, ...]:
    """Return the blocks whose outputs are read: 3, 5, 7, 11 of 12; 7, 11, 15, 23 of 24."""
    parts = (depth // 3, depth // 2, 2 * depth // 3, depth)
    return tuple(max(part - 1, 0) for part in parts)


class SegmentationVit(nn.Module):
    """An encoder's patch embedding, [cls], positions and blocks, read at four depths.

    Parameter names are timm's, under which layer decay finds each block. What the encoder has of
    its own, factors or a table of relative positions for all blocks, each block begins with.

    Args:
        encoder: Pre-trained, for the crop's size; its parts are taken over, its final norm is not.

    Shape:
        - images: (B, 3, H, W), normalised, H = W = the encoder's image size.
        - Output: four maps (B, D, H/p, W/p), in order of depth.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        vit = encoder.vit
        self.grid_size = vit.grid_size
        self.taps = tap_indices(vit.depth)
        self.patch_embed = encoder.patch_embed
        self.cls_token, self.reg_token = encoder.cls_token, encoder.reg_token
        shared = encoder.relative_position_bias
        if shared is None:
            self.pos_embed = encoder.pos_embed.requires_grad_(True)
        else:
            self.register_buffer("pos_embed", encoder.pos_embed, persistent=False)  # zero
        self.blocks = encoder.blocks
        for module in self.blocks if encoder.parts.layer_scale is None else ():
            block = cast(Block, module)  # what it adds has factors that begin at 1 and are learned
            block.ls1 = LayerScale(vit.embed_dim, init_values=1.0)
            block.ls2 = LayerScale(vit.embed_dim, init_values=1.0)
        self.position_biases = nn.ModuleList(
            RelativePositionBias(vit.num_heads, vit.grid_size) if shared is None
            else copy.deepcopy(shared)
            for _ in range(vit.depth)
        )  # fmt: skip

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the four taps."""
        tokens = self.patch_embed(images) + self.pos_embed[:, 1:]  # (B, N, D)
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(tokens.shape[0], -1, -1)
        registers = [] if self.reg_token is None else [self.reg_token.expand(len(tokens), -1, -1)]
        first = [each.to(tokens.dtype) for each in (cls, *registers)]
        tokens = torch.cat([*first, tokens], dim=1)  # (B, 1 + R + N, D)
        outputs, count = [], sum(each.shape[1] for each in registers)
        for block, bias in zip(self.blocks, self.position_biases, strict=True):
            tokens = block(tokens, attn_mask=_beside_registers(bias(), count))
            outputs.append(tokens)
        maps = [outputs[i][:, 1 + count :].transpose(1, 2) for i in self.taps]
        return [each.unflatten(2, (self.grid_size, self.grid_size)) for each in maps]


def _beside_registers(bias: Tensor, count: int) -> Tensor:
    """Give registers, which have no offset, a bias of zero.

    Shape:
        - bias: (1, heads, 1 + N, 1 + N). Output: (1, heads, 1 + R + N, 1 + R + N), R = `count`.
    """
    if count == 0:
        return bias
    for axis in (2, 3):
        shape = list(bias.shape)
        shape[axis] = count
        first, others = bias.split([1, bias.shape[axis] - 1], dim=axis)
        bias = torch.cat([first, bias.new_zeros(shape), others], dim=axis)
    return bias


class ScalePyramid(nn.Module):
    """Four maps of one scale to four scales: 4, 2, 1 and 1/2 times the grid of patches.

    Shape:
        - maps: four of (B, D, G, G). Output: (B, D, 4G, 4G), (B, D, 2G, 2G), (B, D, G, G),
          (B, D, G/2, G/2).

    Raises:
        InputError: There is but one patch along a side, of which no half can be taken.
    """

    def __init__(self, width: int, grid_size: int) -> None:
        super().__init__()
        if grid_size < 2:
            raise InputError(
                "segmentation needs at least 2 patches along a side of the crop, got "
                f"{grid_size}; choose a larger crop_size"
            )
        self.scales = nn.ModuleList(
            [
                nn.Sequential(
                    nn.ConvTranspose2d(width, width, kernel_size=2, stride=2),
                    nn.BatchNorm2d(width),
                    nn.GELU(),
                    nn.ConvTranspose2d(width, width, kernel_size=2, stride=2),
                ),
                nn.ConvTranspose2d(width, width, kernel_size=2, stride=2),
                nn.Identity(),
                nn.MaxPool2d(kernel_size=2, stride=2),
            ]
        )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Rescale each map."""
        return [scale(x) for scale, x in zip(self.scales, maps, strict=True)]
