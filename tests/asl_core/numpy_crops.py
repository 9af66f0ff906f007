"""Random resized crops image by image in NumPy: whole numbers, no tensor arithmetic."""

import math

import numpy as np
from numpy.typing import NDArray

Box = tuple[int, int, int, int, bool]
"""top, left, height, width, mirrored."""


def numbers(seed: int, index: int, count: int) -> list[float]:
    """The counter hash in Python's unbounded integers, 24 bits of it."""
    wrap, golden = 2**64 - 1, 0x9E3779B97F4A7C15

    def mix(x: int) -> int:
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & wrap
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & wrap
        return x ^ (x >> 31)

    key = mix((index * golden + seed) & wrap)
    return [(mix((key + position * golden) & wrap) >> 40) / 2**24 for position in range(count)]


def box(
    seed: int, index: int, size: tuple[int, int], scale: tuple[float, float], flip: bool
) -> Box:
    """Draw a box: ten areas, ten aspects, the first that fits; then its place; then its side."""
    drawn, (height, width) = numbers(seed, index, 23), size
    mirrored = flip and drawn[22] < 0.5
    for area_number, aspect_number in zip(drawn[:10], drawn[10:20], strict=True):
        area = height * width * (scale[0] + (scale[1] - scale[0]) * area_number)
        low, high = np.log(3 / 4), np.log(4 / 3)
        aspect = np.exp(low + (high - low) * aspect_number)
        box_width, box_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = int(drawn[20] * (height - box_height + 1))
            left = int(drawn[21] * (width - box_width + 1))
            return top, left, box_height, box_width, mirrored
    box_width = min(width, round(height * 4 / 3))
    box_height = min(height, round(width / (3 / 4)))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width, mirrored


def crop(image: NDArray[np.uint8], part: Box, side: int) -> NDArray[np.uint8]:
    """Resize a part of an image, (C, H, W), to a square as Pillow does: rows, then columns."""
    top, left, height, width, mirrored = part
    pixels = image[:, top : top + height, left : left + width].astype(np.int64)
    rows = _rounded(pixels @ _taps(width, side).T)
    squares = _rounded(_taps(height, side) @ rows)
    return (squares[:, :, ::-1] if mirrored else squares).astype(np.uint8)


def _taps(length: int, side: int) -> NDArray[np.int64]:
    """What each pixel weighs in each that is made of them, in units of 2^-15, (side, length)."""
    scale = length / side
    wide = max(scale, 1.0)
    taps = np.zeros((side, length))
    for i in range(side):
        centre = (i + 0.5) * scale
        for j in range(
            max(0, int(centre - 2 * wide + 0.5)), min(length, int(centre + 2 * wide + 0.5))
        ):
            x = abs(j + 0.5 - centre) / wide
            if x < 1:
                taps[i, j] = 1.5 * x**3 - 2.5 * x**2 + 1
            elif x < 2:
                taps[i, j] = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
        taps[i] /= taps[i].sum()
    return np.rint(taps * 2**15).astype(np.int64)


def _rounded(sums: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.clip((sums + 2**14) >> 15, 0, 255)
