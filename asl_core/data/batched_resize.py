"""Boxes of a batch of small images, each resized to one square: two products of matrices.

Pillow's bicubic filter with antialiasing, which torchvision uses for uint8: along rows, rounded to
uint8, then along columns, rounded again. Its weights are multiples of 2^-15 here. A sum of such
multiples of uint8 values is below 2^9, so that float32 holds it and all its parts exactly: in
whatever order a device sums, the bits are the same.
"""

import torch
from torch import Tensor

from asl_core.data.random_boxes import Boxes

_UNIT = 2.0**-15


class BoxResizer:
    """Cuts a box out of each image of a batch and resizes it.

    Args:
        image_size: Height and width of every image.
        side: Of the squares that are made.
        device: Where the images are.

    Shape:
        - images: (B, H, C, W), uint8: channels between rows and columns, for the two products.
        - Output: (B, C, side, side), uint8.
    """

    def __init__(self, image_size: tuple[int, int], side: int, device: torch.device) -> None:
        # some containers let GPUs round float32 products to TF32, whose 11 bits are too few
        dtype = torch.float64 if device.type == "cuda" else torch.float32
        self._side = side
        self._down, self._across = (
            _windows(resize_weights(length, side).to(dtype).to(device)) for length in image_size
        )

    def __call__(self, images: Tensor, boxes: Boxes) -> Tensor:
        """Return the boxes as squares; those that are flipped mirrored."""
        batch, height, channels, width = images.shape
        down = self._down[boxes.height - 1, height - boxes.top]  # (B, S, H)
        across = self._across[boxes.width - 1, width - boxes.left]  # (B, S, W)
        pixels = images.to(down.dtype).view(batch, height * channels, width)
        rows = _rounded(torch.bmm(pixels, across.mT)).view(batch, height, channels * self._side)
        squares = _rounded(torch.bmm(down, rows)).to(torch.uint8)  # (B, S, C S)
        squares = squares.view(batch, self._side, channels, self._side).transpose(1, 2)
        return torch.where(boxes.flipped[:, None, None, None], squares.flip(3), squares)


def resize_weights(length: int, side: int) -> Tensor:
    """Return what the first n of `length` pixels weigh in each of `side` that are made of them.

    Source: Pillow's `precompute_coeffs`, with its bicubic filter, a = -1/2.

    Shape:
        - Output: (length, side, length), float64, multiples of 2^-15: the first row is for n = 1.
    """
    count = torch.arange(1, length + 1, dtype=torch.float64)[:, None, None]  # (L, 1, 1)
    made = torch.arange(side, dtype=torch.float64)[None, :, None]  # (1, S, 1)
    pixel = torch.arange(length, dtype=torch.float64)[None, None, :]  # (1, 1, L)
    scale = count / side
    stretch = scale.clamp(min=1.0)
    centre, reach = scale * (made + 0.5), 2.0 * stretch
    first = (centre - reach + 0.5).floor().clamp(min=0.0)
    last = torch.minimum((centre + reach + 0.5).floor(), count)
    inside = (pixel >= first) & (pixel < last)
    weights = torch.where(inside, _bicubic((pixel - centre + 0.5) / stretch), 0.0)
    weights = weights / weights.sum(-1, keepdim=True)
    return torch.round(weights / _UNIT) * _UNIT


def _bicubic(x: Tensor, a: float = -0.5) -> Tensor:
    x = x.abs()
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * a
    return torch.where(x < 1.0, near, torch.where(x < 2.0, far, 0.0))


def _windows(weights: Tensor) -> Tensor:
    """Return a view whose [n - 1, L - first] is (S, L): the weights of n pixels from `first` on."""
    length = len(weights)
    padded = torch.nn.functional.pad(weights, (length, 0))  # (L, S, 2 L)
    return padded.unfold(2, length, 1).transpose(1, 2)  # (L, L + 1, S, L)


def _rounded(values: Tensor) -> Tensor:
    """Round halves up, into 0..255: exact, for the values are multiples of 2^-15 below 2^9."""
    return values.add_(0.5).floor_().clamp_(0, 255)
