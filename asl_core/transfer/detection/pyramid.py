"""From four maps of one resolution to a feature pyramid."""

import math
from collections import OrderedDict

from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

LEVELS = ("p2", "p3", "p4", "p5")
"""Levels that RoIs are pooled from; the RPN reads one coarser level more."""


def upsample_four(dim: int) -> nn.Sequential:
    """Return deconvolution, GroupNorm, GELU, deconvolution: four times the resolution."""
    return nn.Sequential(
        nn.ConvTranspose2d(dim, dim, kernel_size=2, stride=2),
        nn.GroupNorm(math.gcd(32, dim), dim),  # 32 groups wherever the width allows it
        nn.GELU(),
        nn.ConvTranspose2d(dim, dim, kernel_size=2, stride=2),
    )


class TapPyramid(nn.Module):
    """Four taps of a ViT to scales 4, 2, 1, 1/2, then a feature pyramid network with BatchNorm.

    Source: Benchmarking protocol (Li et al., 2021), Section 3; FPN (Lin et al., 2017).

    Args:
        dim: Width of the taps, D.
        channels: Width of the pyramid, C.

    Shape:
        - taps: four (B, D, h, w), h and w even.
        - Output: p2 (B, C, 4h, 4w), p3, p4, p5 (B, C, h/2, w/2), and pool, half of p5.
    """

    def __init__(self, dim: int, channels: int) -> None:
        super().__init__()
        self.scales = nn.ModuleList(
            [
                upsample_four(dim),
                nn.ConvTranspose2d(dim, dim, kernel_size=2, stride=2),
                nn.Identity(),
                nn.MaxPool2d(kernel_size=2, stride=2),
            ]
        )
        self.fpn = FeaturePyramidNetwork(
            [dim] * len(LEVELS),
            channels,
            extra_blocks=LastLevelMaxPool(),
            norm_layer=nn.BatchNorm2d,
        )

    def forward(self, taps: list[Tensor]) -> dict[str, Tensor]:
        """Scale the taps, the shallowest the most, and merge them from the top down."""
        maps = [scale(tap) for scale, tap in zip(self.scales, taps, strict=True)]
        # float32: anchors and boxes take the features' type, and bf16 cannot name a pixel of 1024
        return {
            name: level.float()
            for name, level in self.fpn(OrderedDict(zip(LEVELS, maps, strict=True))).items()
        }
