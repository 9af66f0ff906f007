"""Images and semantic maps as the segmenter reads them: mmsegmentation's training pipeline.

Images stay uint8; the network's forward normalises them and blanks the padding, so that it has
the value 0 after normalisation, as in the original.
"""

import random
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from asl_core.data.samples import IGNORED_LABEL, Sample

CROP_ATTEMPTS = 10
"""How often a crop with one dominant class is drawn again."""

BRIGHTNESS_DELTA = 32.0  # of 255, added
FACTOR_RANGE = (0.5, 1.5)  # of contrast and of saturation
HUE_DELTA = 0.1  # of the circle: OpenCV's 18 of 180
LONGEST = 4
"""The long side becomes at most so many times what the short side should become: 2048 : 512."""


@dataclass(frozen=True)
class SegmentationItem:
    """One image for the segmenter.

    Attributes:
        image: (3, H, W), uint8.
        semantic: Class of each pixel, 255 = ignored; (H', W'), uint8. In training H' = H; for a
            test it is the original map, of another size than the resized image.
        size: Height and width of what is not padding, (2,), int64.
        index: Position in the split.
    """

    image: Tensor
    semantic: Tensor
    size: Tensor
    index: int


class SegmentationBatch(NamedTuple):
    """Training items joined: (B, 3, S, S), (B, S, S), (B, 2), (B,)."""

    images: Tensor
    semantic: Tensor
    sizes: Tensor
    indices: Tensor


def collate_segmentation(items: list[SegmentationItem]) -> SegmentationBatch:
    """Join training items, which all have one size."""
    return SegmentationBatch(
        images=torch.stack([item.image for item in items]),
        semantic=torch.stack([item.semantic for item in items]),
        sizes=torch.stack([item.size for item in items]),
        indices=torch.tensor([item.index for item in items]),
    )


def size_with_short_side(height: int, width: int, short: float) -> tuple[int, int]:
    """Return the size with the same proportions whose shorter side is `short`, rounded.

    Where the longer one would become more than `LONGEST` times that, it becomes that, and the
    shorter one less.
    """
    scale = min(short / min(height, width), LONGEST * short / max(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def resize_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize uint8 pixels bilinearly and, as OpenCV does, without antialiasing."""
    if tuple(image.shape[-2:]) == size:
        return image
    return TF.resize(image, list(size), InterpolationMode.BILINEAR, antialias=False)


def semantic_map(sample: Sample) -> Tensor:
    """Return the sample's map; all is ignored where nobody made one."""
    if sample.semantic is not None:
        return sample.semantic
    return torch.full(sample.image.shape[-2:], IGNORED_LABEL, dtype=torch.uint8)


@dataclass(frozen=True)
class TrainingCrop:
    """Resize, crop with a cap on one class's share, flip, distort colours, pad below and right.

    Source: mmsegmentation's ADE20K pipeline at 512 pixels.

    Attributes:
        crop_size: Side of the crop, S; also the short side of an image at scale 1.
        scale_range: The short side becomes S times a uniform number of this range.
        category_share_max: A crop in which one class has this share or more is drawn again.
        flip: Probability of a horizontal flip.
    """

    crop_size: int
    scale_range: tuple[float, float] = (0.5, 2.0)
    category_share_max: float = 0.75
    flip: float = 0.5

    def __call__(self, sample: Sample) -> SegmentationItem:
        """Draw from the global generators, which the loader seeds for each sample."""
        height, width = sample.image.shape[-2:]
        size = size_with_short_side(
            height, width, self.crop_size * random.uniform(*self.scale_range)
        )
        image = resize_image(sample.image, size)
        semantic = TF.resize(semantic_map(sample)[None], list(size), InterpolationMode.NEAREST)[0]
        top, left = self.place(semantic)
        rows, columns = slice(top, top + self.crop_size), slice(left, left + self.crop_size)
        image, semantic = image[:, rows, columns], semantic[rows, columns]
        if random.random() < self.flip:
            image, semantic = image.flip(2), semantic.flip(1)
        image = distort_colours(image)
        shown = torch.tensor(image.shape[-2:])
        right, below = (self.crop_size - image.shape[2], self.crop_size - image.shape[1])
        image = F.pad(image, (0, right, 0, below))
        semantic = F.pad(semantic, (0, right, 0, below), value=IGNORED_LABEL)
        return SegmentationItem(image, semantic, shown, sample.index)

    def place(self, semantic: Tensor) -> tuple[int, int]:
        """Draw top and left of the crop; after ten refusals take what comes."""
        height, width = semantic.shape
        place = self.draw_place(height, width)
        for _ in range(CROP_ATTEMPTS):
            top, left = place
            crop = semantic[top : top + self.crop_size, left : left + self.crop_size]
            counts = torch.bincount(crop.flatten(), minlength=256)[:IGNORED_LABEL]
            if counts.max() < self.category_share_max * counts.sum():
                break
            place = self.draw_place(height, width)
        return place

    def draw_place(self, height: int, width: int) -> tuple[int, int]:
        """Draw top and left, all places equally likely."""
        top = random.randint(0, max(height - self.crop_size, 0))
        return top, random.randint(0, max(width - self.crop_size, 0))


def distort_colours(image: Tensor) -> Tensor:
    """Change brightness, contrast, saturation and hue, each with probability 1/2.

    mmsegmentation's PhotoMetricDistortion: contrast scales the pixel values and comes first or
    last. torchvision's RandomPhotometricDistort also permutes the channels, and adds no
    brightness; its saturation blends with grey.

    Shape:
        - image: (3, H, W), uint8; likewise the output.
    """
    if random.random() < 0.5:
        delta = random.uniform(-BRIGHTNESS_DELTA, BRIGHTNESS_DELTA)
        image = (image.float() + delta).clamp(0, 255).to(torch.uint8)
    contrast_first = random.random() < 0.5
    if contrast_first:
        image = scale_values(image)
    if random.random() < 0.5:
        image = scale_saturation(image, random.uniform(*FACTOR_RANGE))
    if random.random() < 0.5:
        image = TF.adjust_hue(image, random.uniform(-HUE_DELTA, HUE_DELTA))
    return image if contrast_first else scale_values(image)


def scale_saturation(image: Tensor, factor: float) -> Tensor:
    """Multiply S of HSV, at most to 1; hue and V, the largest of the three channels, stay.

    S is (V - smallest channel) / V, and the distance of each channel to V is proportional to it.
    OpenCV does it with S in steps of 1/255.

    Shape:
        - image: (3, H, W), uint8; likewise the output.
    """
    pixels = image.float()
    value, smallest = pixels.amax(0), pixels.amin(0)  # (H, W)
    most = value / (value - smallest).clamp(min=1)  # leads to S = 1; grey stays as it is
    return (value - (value - pixels) * most.clamp(max=factor)).round().to(torch.uint8)


def scale_values(image: Tensor) -> Tensor:
    """Multiply the values of every other image by a random factor."""
    if random.random() < 0.5:
        image = (image.float() * random.uniform(*FACTOR_RANGE)).clamp(0, 255).to(torch.uint8)
    return image


@dataclass(frozen=True)
class ShortSide:
    """Resize the image so that its shorter side is the crop's, or less where it is very long.

    The map stays as it is.

    Attributes:
        crop_size: Side of the sliding window.
    """

    crop_size: int

    def __call__(self, sample: Sample) -> SegmentationItem:
        height, width = sample.image.shape[-2:]
        image = resize_image(sample.image, size_with_short_side(height, width, self.crop_size))
        size = torch.tensor(image.shape[-2:])
        return SegmentationItem(image, semantic_map(sample), size, sample.index)
