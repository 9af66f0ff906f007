"""Handwritten digits and photographic backgrounds, from files that scikit-learn ships.

Real strokes on real texture, in a few hundred kilobytes that are there without a network. Train
and test share neither a digit nor a part of a photograph.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.io import encode_jpeg

from asl_core.data.sources.source import SplitName

DIGIT_NAMES = tuple(str(digit) for digit in range(10))
LICENCE = (
    "digits: Optical Recognition of Handwritten Digits, UCI, CC BY 4.0; "
    "photographs: china.jpg (danielbuechele) and flower.jpg (vultilion), Flickr, CC BY 2.0"
)

_TEST_DIGITS = 360  # the last fifth of 1797; writers come in blocks, so most are unseen in training
_TEST_COLUMNS = 220  # the right third of each photograph, which is 640 pixels wide
_JPEG_QUALITY = 95
_DUSK = 0.4  # photographs are dimmed by this, so that digits are the bright part: a miniature model
# on a short budget learns nothing of digits that are darker as often as brighter
_MIN_CONTRAST = 90.0  # of 255, by which a digit is brighter than what lies under it
_INK_GAIN = 1.5  # pencil strokes of 8 x 8 pixels are pale when scaled up
_INK_THRESHOLD = 127  # of 255; the mask is where the digit covers the background by half

FloatImage = NDArray[np.float32]


@dataclass(frozen=True)
class Material:
    """What the pictures of one split are made of.

    Attributes:
        digits: By class, images of the ink, (n, 8, 8), uint8, 255 = full.
        numbers: By class, each digit's number in `load_digits()`, (n,).
        photographs: RGB images.
    """

    digits: tuple[NDArray[np.uint8], ...]
    numbers: tuple[NDArray[np.int64], ...]
    photographs: tuple[Image.Image, ...]


@cache
def material(split: SplitName) -> Material:
    """Return the digits and the photographs of one split."""
    # a second and 130 MiB that sources other than icons and scenes do not need
    from sklearn.datasets import load_digits, load_sample_images

    digits: Any = load_digits()  # scikit-learn annotates the form with return_X_y
    ink = np.round(digits.images * (255 / 16)).astype(np.uint8)  # (1797, 8, 8)
    numbers = np.arange(len(ink))
    chosen = (numbers < len(ink) - _TEST_DIGITS) == (split == "train")
    by_class = [numbers[chosen & (digits.target == digit)] for digit in range(10)]
    return Material(
        digits=tuple(ink[members] for members in by_class),
        numbers=tuple(by_class),
        photographs=tuple(
            Image.fromarray(photo[:, :-_TEST_COLUMNS] if split == "train"
                            else photo[:, -_TEST_COLUMNS:])
            for photo in load_sample_images().images
        ),
    )  # fmt: skip


def draw_background(
    rng: np.random.Generator, photographs: tuple[Image.Image, ...], image_size: int
) -> FloatImage:
    """Return a random square of a photograph, dimmed and scaled to the image; (S, S, 3), of 255."""
    photo = photographs[rng.integers(len(photographs))]
    largest = min(photo.size)
    side = rng.uniform(min(image_size, largest), min(2.5 * image_size, largest))
    x, y = rng.uniform(0, photo.width - side), rng.uniform(0, photo.height - side)
    crop = photo.resize(
        (image_size, image_size), Image.Resampling.BILINEAR, box=(x, y, x + side, y + side)
    )
    return np.asarray(crop, dtype=np.float32) * _DUSK


def draw_ink(rng: np.random.Generator, digits: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Return the ink of a random digit out of (n, 8, 8), (size, size), 255 = full."""
    digit = Image.fromarray(digits[rng.integers(len(digits))])
    ink = np.asarray(digit.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32)
    return np.minimum(ink * _INK_GAIN, 255).astype(np.uint8)


def ink_mask(ink: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return where the digit hides what is behind it."""
    return ink > _INK_THRESHOLD


def paint(
    rng: np.random.Generator, canvas: FloatImage, ink: NDArray[np.uint8], x: int, y: int
) -> None:
    """Paint the digit into the canvas at (x, y), in a colour that stands out there."""
    size = len(ink)
    region = canvas[y : y + size, x : x + size]  # (size, size, 3), a view
    alpha = (ink.astype(np.float32) / 255)[:, :, None]
    below = float((region * alpha).sum() / (3 * alpha.sum()))
    colours = rng.uniform(0, 255, size=(8, 3)).astype(np.float32)
    contrast = colours.mean(axis=1) - below
    enough = np.flatnonzero(contrast >= _MIN_CONTRAST)
    colour = colours[enough[0] if len(enough) else contrast.argmax()]
    region += alpha * (colour - region)


def encode_picture(canvas: FloatImage) -> bytes:
    """Return the canvas, (S, S, 3), as a JPEG file."""
    pixels = torch.from_numpy(canvas.round().clip(0, 255).astype(np.uint8)).permute(2, 0, 1)
    file: Any = encode_jpeg(pixels.contiguous(), quality=_JPEG_QUALITY)
    return file.numpy().tobytes()
