"""UPerNet's heads: pyramid pooling, top-down fusion, classifier; and the auxiliary FCN.

Source: mmsegmentation's UPerHead and FCNHead (Xiao et al., 2018), which every published ADE20K
result on a plain ViT uses; initialised as there.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

POOL_SCALES = (1, 2, 3, 6)
"""Sides of the maps to which pyramid pooling averages."""


class ConvNormRelu(nn.Sequential):
    """Convolution that keeps the size, BatchNorm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False
        )
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        super().__init__(conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


def resize_to(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resize maps bilinearly, corners not aligned; (B, C, H, W) to (B, C, *size)."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


class PixelClassifier(nn.Sequential):
    """Dropout of whole channels, then a 1 x 1 convolution, N(0, .01)."""

    def __init__(self, channels: int, num_classes: int, dropout: float, std: float) -> None:
        conv = nn.Conv2d(channels, num_classes, kernel_size=1)
        nn.init.normal_(conv.weight, std=std)
        nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        super().__init__(nn.Dropout2d(dropout), conv)


class PyramidPooling(nn.Module):
    """Averages over ever finer parts of the map, put beside the map itself.

    Shape:
        - x: (B, C, H, W). Output: (B, channels, H, W).
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(scale), ConvNormRelu(in_channels, channels, 1))
            for scale in POOL_SCALES
        )
        self.fuse = ConvNormRelu(in_channels + len(POOL_SCALES) * channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Pool, resize back, fuse."""
        pooled = [resize_to(stage(x), x.shape[-2:]) for stage in self.stages]
        return self.fuse(torch.cat([x, *pooled], dim=1))


class UPerHead(nn.Module):
    """UPerNet's decoder.

    In training BatchNorm sees the 1 x 1 map of the coarsest pooling: it needs two images per
    forward pass, or statistics over processes.

    Args:
        in_channels: Width of each map, in order of falling resolution.
        channels: Width of the head.
        num_classes: K.
        dropout: Rate of the dropout before the classifier.

    Shape:
        - maps: (B, C_i, H_i, W_i). Output: logits (B, K, H_0, W_0).
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int,
        num_classes: int,
        dropout: float = 0.1,
        classifier_std: float = 0.01,
    ) -> None:
        super().__init__()
        self.pooling = PyramidPooling(in_channels[-1], channels)
        self.laterals = nn.ModuleList(ConvNormRelu(c, channels, 1) for c in in_channels[:-1])
        self.smooth = nn.ModuleList(ConvNormRelu(channels, channels, 3) for _ in in_channels[:-1])
        self.fuse = ConvNormRelu(len(in_channels) * channels, channels, 3)
        self.classifier = PixelClassifier(channels, num_classes, dropout, classifier_std)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return logits at the resolution of the first map."""
        coarse = self.pooling(maps[-1])
        below = coarse
        sums = []
        for lateral, x in zip(reversed(self.laterals), reversed(maps[:-1]), strict=True):
            below = lateral(x) + resize_to(below, x.shape[-2:])
            sums.insert(0, below)
        levels = [smooth(x) for smooth, x in zip(self.smooth, sums, strict=True)]
        size = maps[0].shape[-2:]
        fused = self.fuse(torch.cat([resize_to(x, size) for x in (*levels, coarse)], dim=1))
        return self.classifier(fused)


class FcnHead(nn.Sequential):
    """One 3 x 3 convolution and a classifier: the auxiliary head.

    Shape:
        - Input: (B, C, H, W). Output: logits (B, K, H, W).
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        num_classes: int,
        dropout: float = 0.1,
        classifier_std: float = 0.01,
    ) -> None:
        super().__init__(
            ConvNormRelu(in_channels, channels, 3),
            PixelClassifier(channels, num_classes, dropout, classifier_std),
        )
