"""Images and objects as the detector reads them: large-scale jitter, and resizing for the test.

detectron2's semantics (ResizeScale, FixedSizeCrop, boxes cut with their objects). torchvision's own
transforms differ: they pad on all sides, keep boxes of objects that the crop cut, and leave empty
masks.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import clip_boxes_to_image, masks_to_boxes
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from asl_core.data.masks import rasterise
from asl_core.data.samples import Instances, Sample

PADDING_GREY = 128
"""Value of the pixels that a training image smaller than the square leaves over (detectron2)."""


@dataclass(frozen=True)
class DetectionItem:
    """One image for the detector.

    Attributes:
        image: (3, S, S), uint8; the image lies at the top left.
        size: Height and width of what the network takes for the image.
        original_size: Height and width before resizing.
        image_id: The source's number of the image.
        index: Position in the split.
        target: boxes (K, 4) float32, labels (K,) from 1, masks (K, S, S) bool; empty for a test.
    """

    image: Tensor
    size: tuple[int, int]
    original_size: tuple[int, int]
    image_id: int
    index: int
    target: dict[str, Tensor]


class DetectionBatch(NamedTuple):
    """Items joined: images (B, 3, S, S), indices (B,), the rest by image."""

    images: Tensor
    sizes: list[tuple[int, int]]
    original_sizes: list[tuple[int, int]]
    image_ids: list[int]
    indices: Tensor
    targets: list[dict[str, Tensor]]


def collate_detection(items: list[DetectionItem]) -> DetectionBatch:
    """Join items to a batch."""
    return DetectionBatch(
        images=torch.stack([item.image for item in items]),
        sizes=[item.size for item in items],
        original_sizes=[item.original_size for item in items],
        image_ids=[item.image_id for item in items],
        indices=torch.tensor([item.index for item in items]),
        targets=[item.target for item in items],
    )


def fitted_size(height: int, width: int, side: float) -> tuple[int, int]:
    """Return the size with the same proportions whose longest side is `side`, rounded."""
    scale = side / max(height, width)
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize uint8 pixels bilinearly, antialiased as PIL does."""
    if tuple(image.shape[-2:]) == size:
        return image
    return TF.resize(image, list(size), InterpolationMode.BILINEAR, antialias=True)


def on_square(image: Tensor, side: int) -> Tensor:
    """Put an image at the top left of a grey square; (3, H, W) to (3, S, S), H, W <= S."""
    square = torch.full((3, side, side), PADDING_GREY, dtype=torch.uint8)
    square[:, : image.shape[1], : image.shape[2]] = image
    return square


def nearest_pixels(source: int, resized: int, offset: int, count: int) -> Tensor:
    """Return which source pixels a resized and cropped axis shows: pixel centres, nearest.

    Args:
        source: Length of the axis.
        resized: Its length after resizing.
        offset: First pixel of the crop, in resized pixels.
        count: Pixels of the crop.
    """
    centres = torch.arange(offset, offset + count, dtype=torch.float64) + 0.5
    return (centres * source / resized).to(torch.int64).clamp(max=source - 1)


class Placement(NamedTuple):
    """Where a resized and cropped image lies: factors of height and width, then top and left."""

    scale: tuple[float, float]
    corner: tuple[int, int]

    def boxes(self, boxes: Tensor) -> Tensor:
        """Return the boxes of the original in pixels of the crop, not cut; (K, 4)."""
        (y, x), (top, left) = self.scale, self.corner
        return boxes * boxes.new_tensor([x, y, x, y]) - boxes.new_tensor([left, top, left, top])


@dataclass(frozen=True)
class LargeScaleJitter:
    """Resize by a random factor, crop or pad to the square at the top left, flip.

    Source: detectron2's ResizeScale and FixedSizeCrop, as in ViTDet's and the Benchmarking
    configurations: one random number places the crop on both axes. The flip comes last. An object
    that the crop does not cut keeps its annotated box, scaled; of one that is cut the box's
    intersection with the crop remains, as far as the object is seen in it. The original takes the
    bounds of the polygons that remain. Bounds of the pixels that show an object would be wrong by
    up to half a pixel on each side, which is a fifth of an object of eight pixels.

    Attributes:
        image_size: Side of the square, S.
        scale_range: The longest side becomes S times a uniform number of this range.
        flip: Probability of a horizontal flip.
    """

    image_size: int
    scale_range: tuple[float, float] = (0.1, 2.0)
    flip: float = 0.5

    def __call__(self, sample: Sample) -> DetectionItem:
        """Draw from the global generator, which the loader seeds for each sample."""
        draw_scale, draw_offset, draw_flip = torch.rand(3, dtype=torch.float64).tolist()
        low, high = self.scale_range
        height, width = sample.image.shape[-2:]
        resized = fitted_size(height, width, self.image_size * (low + (high - low) * draw_scale))
        top, left = (round(max(side - self.image_size, 0) * draw_offset) for side in resized)
        image = resize(sample.image, resized)
        image = image[:, top : top + self.image_size, left : left + self.image_size]
        shown = (image.shape[1], image.shape[2])
        placed = Placement((resized[0] / height, resized[1] / width), (top, left))
        rows = nearest_pixels(height, resized[0], top, shown[0])
        columns = nearest_pixels(width, resized[1], left, shown[1])
        image = on_square(image, self.image_size)
        target = self.target(sample.instances, rows, columns, placed)
        if draw_flip < self.flip:
            image = image.flip(2)
            target = flip_target(target, self.image_size)
        side = (self.image_size, self.image_size)
        return DetectionItem(
            image.contiguous(), side, (height, width), sample.image_id, sample.index, target
        )

    def target(
        self, instances: Instances | None, rows: Tensor, columns: Tensor, placed: Placement
    ) -> dict[str, Tensor]:
        """Return what the crop shows of the objects that are no crowd."""
        side = self.image_size
        if instances is None:
            return empty_target(side)
        kept = ~instances.crowd
        boxes = placed.boxes(instances.boxes[kept])
        inside = clip_boxes_to_image(boxes, (len(rows), len(columns)))
        # columns first, as bytes: half the time of rows first
        pixels = instances.masks[kept].view(torch.uint8)
        cropped = pixels.index_select(2, columns).index_select(1, rows).view(torch.bool)
        self.draw_polygons(cropped, instances, kept, placed)
        seen = cropped.flatten(1).any(dim=1) & ((inside[:, 2:] - inside[:, :2]) > 0).all(dim=1)
        if not seen.any():
            return empty_target(side)
        boxes, inside, cropped = boxes[seen], inside[seen], cropped[seen]
        cut = (boxes != inside).any(dim=1)
        inside[cut] = narrowed(inside[cut], cropped[cut])
        masks = torch.zeros(len(cropped), side, side, dtype=torch.bool)
        masks[:, : len(rows), : len(columns)] = cropped
        return {"boxes": inside, "labels": instances.labels[kept][seen] + 1, "masks": masks}

    def draw_polygons(
        self, cropped: Tensor, instances: Instances, kept: Tensor, placed: Placement
    ) -> None:
        """Draw masks anew, at the crop's own size, where the source has their polygons.

        Args:
            cropped: Masks of the kept objects as their sampled pixels show them, (K, h, w), bool;
                changed in place.
            instances: Of the whole image.
            kept: Which of them these are.
            placed: Where the crop lies.
        """
        if instances.polygons is None:
            return
        (y, x), (top, left) = placed
        scale, corner = np.array([x, y], np.float32), np.array([left, top], np.float32)
        for mask, index in zip(cropped, kept.nonzero().flatten().tolist(), strict=True):
            if polygons := instances.polygons[index]:
                moved = [(p.numpy().reshape(-1, 2) * scale - corner).reshape(-1) for p in polygons]
                mask.copy_(rasterise(moved, *mask.shape))


def narrowed(boxes: Tensor, masks: Tensor) -> Tensor:
    """Return boxes without what is further than a pixel from all pixels of their masks.

    Shape:
        - boxes: (K, 4). masks: (K, H, W), bool, none empty. Output: (K, 4).
    """
    bounds = masks_to_boxes(masks)  # first and last pixels
    return torch.cat(
        [boxes[:, :2].maximum(bounds[:, :2] - 1), boxes[:, 2:].minimum(bounds[:, 2:] + 2)], dim=1
    )


def empty_target(side: int) -> dict[str, Tensor]:
    """Return the target of an image without objects."""
    return {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.int64),
        "masks": torch.zeros(0, side, side, dtype=torch.bool),
    }


def flip_target(target: dict[str, Tensor], side: int) -> dict[str, Tensor]:
    """Mirror objects left to right in a square."""
    x1, y1, x2, y2 = target["boxes"].unbind(1)
    boxes = torch.stack([side - x2, y1, side - x1, y2], dim=1)
    return {"boxes": boxes, "labels": target["labels"], "masks": target["masks"].flip(2)}


@dataclass(frozen=True)
class FitIntoSquare:
    """Resize so that the longest side is the square's; the annotations stay behind.

    Attributes:
        image_size: Side of the square, S.
    """

    image_size: int

    def __call__(self, sample: Sample) -> DetectionItem:
        height, width = sample.image.shape[-2:]
        size = fitted_size(height, width, self.image_size)
        image = on_square(resize(sample.image, size), self.image_size)
        target = empty_target(self.image_size)
        return DetectionItem(image, size, (height, width), sample.image_id, sample.index, target)
