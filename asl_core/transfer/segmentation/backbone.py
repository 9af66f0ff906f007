"""The plain ViT as a segmenter's backbone: relative positions, four taps, four scales.

Source: the public reproductions of MAE's ADE20K result (BEiT's segmentation code with MAE's
weights): [cls] stays inside, each block has a bias and factors of its own, nothing is normed at the
end.
"""

from typing import cast

import torch
from timm.layers.layer_scale import LayerScale
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from asl_core.errors import InputError
from asl_core.modules.encoder import Encoder

NUM_SCALES = 4


def tap_indices(depth: int) -> tuple[int, ...]:
    """Return the blocks whose outputs are read: 3, 5, 7, 11 of 12; 7, 11, 15, 23 of 24."""
    parts = (depth // 3, depth // 2, 2 * depth // 3, depth)
    return tuple(max(part - 1, 0) for part in parts)


class RelativePositionBias(nn.Module):
    """Bias added to attention logits: one value per head and offset, zero at the start.

    Three more values per head serve the pairs with [cls]: [cls] to a patch, a patch to [cls],
    [cls] to itself.

    Args:
        num_heads: Heads, h.
        side: Side of the map of patches, s.

    Shape:
        - table: (h, (2s - 1)^2 + 3): 63^2 + 3 values for a map of 32 by 32.
        - Output: (1, h, 1 + s^2, 1 + s^2); among patches, element (i, j) depends on position i
          minus position j.
    """

    offsets: Tensor

    def __init__(self, num_heads: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.table = nn.Parameter(torch.zeros(num_heads, (2 * side - 1) ** 2 + 3))
        axis = torch.arange(side)
        offsets = (axis[:, None] - axis[None, :] + side - 1).flatten()  # (s^2,): 0 .. 2s - 2
        self.register_buffer("offsets", offsets, persistent=False)

    def forward(self) -> Tensor:
        """Spread the table: axis after axis, which needs no index of s^4 entries."""
        heads, s, extent = self.table.shape[0], self.side, 2 * self.side - 1
        among = self.table[:, :-3].reshape(heads, extent, extent)
        among = among.index_select(1, self.offsets).index_select(2, self.offsets)
        among = among.reshape(heads, s, s, s, s).transpose(2, 3)  # row i, column i, row j, column j
        among = among.reshape(heads, s * s, s * s)
        from_cls, to_cls, own = self.table[:, -3:].reshape(heads, 3, 1, 1).unbind(1)  # (h, 1, 1)
        first_row = torch.cat([own, from_cls.expand(-1, -1, s * s)], dim=2)  # (h, 1, 1 + s^2)
        others = torch.cat([to_cls.expand(-1, s * s, -1), among], dim=2)  # (h, s^2, 1 + s^2)
        return torch.cat([first_row, others], dim=1)[None]


class SegmentationVit(nn.Module):
    """An encoder's patch embedding, [cls], positions and blocks, read at four depths.

    Parameter names are timm's, under which layer decay finds each block.

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
        self.cls_token = encoder.cls_token
        self.pos_embed = encoder.pos_embed.requires_grad_(True)
        self.blocks = encoder.blocks
        for module in self.blocks:
            block = cast(Block, module)  # what it adds has factors that begin at 1 and are learned
            block.ls1 = LayerScale(vit.embed_dim, init_values=1.0)
            block.ls2 = LayerScale(vit.embed_dim, init_values=1.0)
        self.position_biases = nn.ModuleList(
            RelativePositionBias(vit.num_heads, vit.grid_size) for _ in range(vit.depth)
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the four taps."""
        tokens = self.patch_embed(images) + self.pos_embed[:, 1:]  # (B, N, D)
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(tokens.shape[0], -1, -1)
        tokens = torch.cat([cls.to(tokens.dtype), tokens], dim=1)  # (B, 1 + N, D)
        outputs = []
        for block, bias in zip(self.blocks, self.position_biases, strict=True):
            tokens = block(tokens, attn_mask=bias())
            outputs.append(tokens)
        side = self.grid_size
        return [outputs[i][:, 1:].transpose(1, 2).unflatten(2, (side, side)) for i in self.taps]


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
