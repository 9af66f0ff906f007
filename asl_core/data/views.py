"""From a sample to what a network sees: crops, flips, colour; batches; normalisation.

Everything up to the batch is uint8: a quarter of the bytes between processes and to the device,
and a resize that is four times as fast as on PIL images (mean difference .03 of 255).
Normalisation happens on the device.

Transforms are dataclasses, so that loader processes of any start method can receive them; they
draw from the global generators, which the loader seeds for each sample.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
import torchvision.transforms.v2.functional as F
from PIL import Image
from timm.data.auto_augment import RandAugment, rand_augment_transform
from torch import Tensor
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import InterpolationMode

from asl_core.data.erasing import erase_rectangle
from asl_core.data.samples import Sample
from asl_core.errors import InputError
from asl_core.recipes.normalisation import NORMALISATIONS, Rgb

ASPECT_RATIOS = (3 / 4, 4 / 3)  # width : height of random crops; Inception's, used by all since
_TEST_ZOOM = 256 / 224  # test images are resized to this multiple of the crop

Box = tuple[int, int, int, int]
"""top, left, height, width in pixels."""


@dataclass(frozen=True)
class LabelledItem:
    """One image, (3, S, S) uint8, its label and its index."""

    image: Tensor
    label: int
    index: int


class LabelledBatch(NamedTuple):
    """Images with their classes.

    Attributes:
        images: (B, 3, S, S), uint8.
        labels: (B,), int64; -1 where there is none.
        indices: (B,), int64.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor


def collate_labelled(items: list[LabelledItem]) -> LabelledBatch:
    """Stack images, labels and indices."""
    return LabelledBatch(
        images=torch.stack([item.image for item in items]),
        labels=torch.tensor([item.label for item in items]),
        indices=torch.tensor([item.index for item in items]),
    )


def train_crop_transform(
    image_size: int, scale_min: float = 0.08, flip: bool = True
) -> Callable[[Sample], LabelledItem]:
    """Return the linear probe's augmentation: a random resized crop drawn once, and a flip.

    Source: official MAE `main_linprobe.py` and `util/crop.py`, whose crop is clamped to the
    image, as in its TensorFlow original, where torchvision's is drawn anew.
    """
    return _TrainCrop(_RandomCrop(image_size, scale_min, flip, single_shot=True))


def finetune_transform(
    image_size: int,
    rand_augment: str | None = "rand-m9-mstd0.5-inc1",
    random_erasing: float = 0.25,
    *,
    mean: Rgb = NORMALISATIONS["imagenet"][0],
    std: Rgb = NORMALISATIONS["imagenet"][1],
    scale_min: float = 0.08,
    flip: bool = True,
) -> Callable[[Sample], LabelledItem]:
    """Return the fine-tuning augmentation: crop, flip, RandAugment, random erasing.

    Source: official MAE `main_finetune.py`, which uses timm's `create_transform`.

    Args:
        image_size: Side of the images in pixels.
        rand_augment: timm's string; None: none.
        random_erasing: Probability that a rectangle is filled with noise.
        mean: Normalisation of the data; its colour fills what RandAugment uncovers.
        std: Likewise; noise is normal after normalisation.
        scale_min: Smallest area of the crop as a share of the image.
        flip: Mirror every other image.

    Raises:
        InputError: `rand_augment` is not a string that timm knows.
    """
    crop = _RandomCrop(image_size, scale_min, flip)
    policy = None if rand_augment is None else rand_augment_policy(rand_augment, image_size, mean)
    return _FineTune(crop, policy, random_erasing, mean, std)


def evaluation_transform(image_size: int) -> Callable[[Sample], LabelledItem]:
    """Return the test protocol: short side to 256/224 of the size, bicubic, then the centre.

    An image that already is a square of this size stays as it is (CIFAR at 32 pixels).

    Source: official MAE `main_linprobe.py`, `util/datasets.py`.
    """
    return _Evaluation(image_size)


def normalise(images: Tensor, mean: Rgb, std: Rgb) -> Tensor:
    """Return (images / 255 - mean) / std; (B, 3, H, W) uint8 -> float32, on the same device."""
    scale, offset = _normalisation(tuple(mean), tuple(std), images.device)
    return images.to(torch.float32) * scale - offset


def denormalise(images: Tensor, mean: Rgb, std: Rgb) -> Tensor:
    """Return normalised images as float32 in [0, 1]; (B, 3, H, W)."""
    scale, offset = _normalisation(tuple(mean), tuple(std), images.device)
    return ((images.to(torch.float32) + offset) / (255 * scale)).clamp(0, 1)


@lru_cache(maxsize=16)
def _normalisation(mean: Rgb, std: Rgb, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return 1 / (255 std) and mean / std, each (3, 1, 1); kept, for copies to a GPU wait."""
    means, stds = torch.tensor([mean, std], device=device)[:, :, None, None]
    return 1 / (255 * stds), means / stds


@dataclass(frozen=True)
class _RandomCrop:
    """A random part of the image, resized to a square, maybe mirrored; uint8 in and out."""

    image_size: int
    scale_min: float
    flip: bool
    single_shot: bool = False

    def __call__(self, image: Tensor) -> Tensor:
        scale = (self.scale_min, 1.0)
        if self.single_shot:
            top, left, height, width = single_shot_box(image, scale, ASPECT_RATIOS)
        else:
            box = RandomResizedCrop.get_params(image, list(scale), list(ASPECT_RATIOS))
            top, left, height, width = box
        size = [self.image_size, self.image_size]
        crop = F.resized_crop(
            image, top, left, height, width, size, InterpolationMode.BICUBIC, antialias=True
        )  # (3, S, S)
        return F.horizontal_flip(crop) if self.flip and torch.rand(()) < 0.5 else crop


def single_shot_box(image: Tensor, scale: tuple[float, float], ratio: tuple[float, float]) -> Box:
    """Draw a crop once: area, then aspect (log-uniform), sides clamped to the image, then place.

    Args:
        image: (C, H, W).
        scale: Range of the area as a share of the image's.
        ratio: Range of width / height.
    """
    height, width = image.shape[-2:]
    area = height * width * torch.empty(1).uniform_(*scale).item()
    aspect = math.exp(torch.empty(1).uniform_(math.log(ratio[0]), math.log(ratio[1])).item())
    box_width = min(round(math.sqrt(area * aspect)), width)
    box_height = min(round(math.sqrt(area / aspect)), height)
    top = int(torch.randint(height - box_height + 1, ()))
    left = int(torch.randint(width - box_width + 1, ()))
    return top, left, box_height, box_width


@dataclass(frozen=True)
class _TrainCrop:
    crop: _RandomCrop

    def __call__(self, sample: Sample) -> LabelledItem:
        return LabelledItem(self.crop(sample.image), _label(sample), sample.index)


@dataclass(frozen=True)
class _FineTune:
    crop: _RandomCrop
    policy: RandAugment | None
    random_erasing: float
    mean: Rgb
    std: Rgb

    def __call__(self, sample: Sample) -> LabelledItem:
        image = self.crop(sample.image)
        if self.policy is not None:
            image = F.pil_to_tensor(self.policy(F.to_pil_image(image)))
        if random.random() < self.random_erasing:
            image = erase_rectangle(image, self.mean, self.std)
        return LabelledItem(image, _label(sample), sample.index)


def rand_augment_policy(text: str, image_size: int, mean: Rgb) -> RandAugment:
    """Return timm's RandAugment, with the settings of its `create_transform`.

    Raises:
        InputError: timm does not know the name.
    """
    settings = {
        "translate_const": int(image_size * 0.45),
        "img_mean": tuple(min(255, round(255 * channel)) for channel in mean),
        "interpolation": Image.Resampling.BICUBIC,
    }
    try:
        return rand_augment_transform(text, settings)
    except (AssertionError, ValueError, KeyError) as error:
        raise InputError(
            f"rand_augment {text!r} is not a policy of timm; use for instance rand-m9-mstd0.5-inc1"
        ) from error


@dataclass(frozen=True)
class _Evaluation:
    image_size: int

    def __call__(self, sample: Sample) -> LabelledItem:
        image, size = sample.image, self.image_size
        if image.shape[-2:] != (size, size):
            short = int(size * _TEST_ZOOM)
            image = F.resize(image, [short], InterpolationMode.BICUBIC, antialias=True)
            image = F.center_crop(image, [size, size])
        return LabelledItem(image, _label(sample), sample.index)


def _label(sample: Sample) -> int:
    return -1 if sample.label is None else sample.label
