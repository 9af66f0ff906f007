"""Random crops and flips of a whole batch: functions of (seed, sample), drawn where it is."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from asl_core.data.views import ASPECT_RATIOS
from asl_core.randomness import uniform
from asl_core.recipes.views import Range

_TRIES = 10


class Boxes(NamedTuple):
    """Parts of images in pixels.

    Attributes:
        top, left, height, width: (B,), int64.
        flipped: Whether the part is mirrored, (B,), bool.
    """

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    flipped: Tensor


def draw_boxes(
    seed: int, indices: Tensor, image_size: tuple[int, int], scale: Range, flip: bool
) -> Boxes:
    """Draw a box for each image, distributed as torchvision's RandomResizedCrop draws it.

    Area uniform, aspect log-uniform, the first of ten tries that lies inside the image, or else
    the largest part in the middle whose aspect is allowed: the rule of the loader, so that the two
    differ in the numbers drawn and in nothing else.

    Args:
        seed: From `derive_seed`, with the purpose and the epoch in it.
        indices: Identities of the samples; also sets the device.
        image_size: Height and width of every image.
        scale: Range of the area as a share of the image's.
        flip: Whether every other box is mirrored.

    Shape:
        - indices: (B,), int64.
    """
    numbers = uniform(seed, indices, (2 * _TRIES + 3,)).double()  # (B, 23)
    image_height, image_width = image_size
    area = image_height * image_width * _between(numbers[:, :_TRIES], *scale)  # (B, 10)
    low, high = (math.log(ratio) for ratio in ASPECT_RATIOS)
    aspect = torch.exp(_between(numbers[:, _TRIES : 2 * _TRIES], low, high))
    widths = torch.round(torch.sqrt(area * aspect))
    heights = torch.round(torch.sqrt(area / aspect))
    fits = (widths >= 1) & (widths <= image_width) & (heights >= 1) & (heights <= image_height)
    first = fits.to(torch.uint8).argmax(1, keepdim=True)  # 0 where none fits
    top, left, height, width = _largest_in_the_middle(image_height, image_width)
    any_fits = fits.any(1)
    box_height = torch.where(any_fits, heights.gather(1, first)[:, 0], float(height))
    box_width = torch.where(any_fits, widths.gather(1, first)[:, 0], float(width))
    tops = torch.floor(numbers[:, -3] * (image_height - box_height + 1))
    lefts = torch.floor(numbers[:, -2] * (image_width - box_width + 1))
    return Boxes(
        torch.where(any_fits, tops, float(top)).long(),
        torch.where(any_fits, lefts, float(left)).long(),
        box_height.long(),
        box_width.long(),
        numbers[:, -1] < (0.5 if flip else 0.0),
    )


def _between(numbers: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * numbers


def _largest_in_the_middle(height: int, width: int) -> tuple[int, int, int, int]:
    narrowest, widest = ASPECT_RATIOS
    box_height, box_width = height, width
    if width / height < narrowest:
        box_height = round(width / narrowest)
    elif width / height > widest:
        box_width = round(height * widest)
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width
