"""Whole images by a sliding window, and the scores of all classes."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from asl_core import distributed
from asl_core.data.loaders import evaluation_batches
from asl_core.data.shards import PackedDataset
from asl_core.data.views import normalise
from asl_core.engine.devices import autocast, pick_device
from asl_core.recipes.optimisation import Resources
from asl_core.recipes.transfer import Segmentation
from asl_core.transfer.segmentation.augment import SegmentationItem, ShortSide
from asl_core.transfer.segmentation.model import Segmenter
from asl_core.transfer.segmentation.upernet import resize_to


@dataclass(frozen=True)
class Prediction:
    """One image's map, true and predicted, in the original pixels.

    Attributes:
        index: Position in the split.
        truth: (H, W), uint8, 255 = ignored.
        predicted: (H, W), int64.
    """

    index: int
    truth: Tensor
    predicted: Tensor


@dataclass(frozen=True)
class SegmentationScores:
    """What counts of pixels say.

    Attributes:
        counts: Pixels by (true class, predicted class), (K, K), int64, ignored ones left out.
    """

    counts: Tensor

    @property
    def iou(self) -> Tensor:
        """Intersection over union by class, (K,), float64; nan for a class that never occurs."""
        counts = self.counts.double()
        hits = counts.diagonal()
        return hits / (counts.sum(dim=0) + counts.sum(dim=1) - hits)

    @property
    def accuracy(self) -> Tensor:
        """Share of each class's pixels that were found, (K,), float64; nan without pixels."""
        counts = self.counts.double()
        return counts.diagonal() / counts.sum(dim=1)

    def metrics(self) -> dict[str, float]:
        """Return miou, macc (means over the classes that occur) and aacc, in percent."""
        counts = self.counts.double()
        found = counts.diagonal().sum() / counts.sum()
        means = {"miou": self.iou.nanmean(), "macc": self.accuracy.nanmean(), "aacc": found}
        return {name: 100.0 * value.item() for name, value in means.items()}


def count_pixels(truth: Tensor, predicted: Tensor, num_classes: int) -> Tensor:
    """Count pixels by (true class, predicted class); ignored pixels fall into a row cut off.

    Shape:
        - truth, predicted: any, the same. Output: (K, K), int64.
    """
    rows = truth.flatten().long().clamp(max=num_classes)
    flat = rows * num_classes + predicted.flatten()
    counts = torch.bincount(flat, minlength=(num_classes + 1) * num_classes)
    return counts.reshape(num_classes + 1, num_classes)[:num_classes]


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Return where the windows begin along an axis: every `stride`, the last one at the end."""
    steps = max(length - window + stride - 1, 0) // stride + 1
    return [max(min(i * stride, length - window), 0) for i in range(steps)]


def slide(segmenter: Segmenter, images: Tensor, window: int, stride: int) -> Tensor:
    """Return logits of whole images: windows' logits, each resized to the window, averaged.

    Shape:
        - images: (B, 3, H, W), normalised; padded with 0 below and at the right where they are
          smaller than a window. Output: (B, K, H, W), float32.
    """
    shown = images.shape[-2:]
    missing = [max(window - side, 0) for side in shown]
    images = F.pad(images, (0, missing[1], 0, missing[0]))
    height, width = images.shape[-2:]
    total = images.new_zeros(len(images), segmenter.num_classes, height, width)
    times = images.new_zeros(height, width)
    for top in window_starts(height, window, stride):
        for left in window_starts(width, window, stride):
            rows, columns = slice(top, top + window), slice(left, left + window)
            logits = segmenter.logits(images[:, :, rows, columns]).float()
            total[:, :, rows, columns] += resize_to(logits, (window, window))
            times[rows, columns] += 1
    return (total / times)[:, :, : shown[0], : shown[1]]


@torch.no_grad()
def predict(
    segmenter: Segmenter,
    dataset: PackedDataset,
    recipe: Segmentation,
    resources: Resources,
    indices: Sequence[int],
    *,
    batch_size: int = 16,
) -> Iterator[Prediction]:
    """Yield this process's share of the predictions, at the images' own sizes.

    Short side to the crop's size, sliding window, logits resized to the original, best class.
    """
    device = pick_device(resources)
    segmenter.to(device).eval()
    batches = evaluation_batches(
        dataset,
        ShortSide(recipe.crop_size),
        list[SegmentationItem],
        batch_size=batch_size,
        num_workers=resources.num_workers,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        subset=indices,
    )
    for batch in batches:
        for items in of_equal_size(batch):
            images = torch.stack([item.image for item in items]).to(device)
            with autocast(device, recipe.precision):
                logits = slide(
                    segmenter,
                    normalise(images, segmenter.mean, segmenter.std),
                    recipe.crop_size,
                    recipe.slide_stride,
                )
            for item, scores in zip(items, logits, strict=True):
                scores = resize_to(scores[None], item.semantic.shape)[0]  # (K, H, W)
                yield Prediction(item.index, item.semantic, scores.argmax(dim=0).cpu())


def of_equal_size(batch: list[SegmentationItem]) -> list[list[SegmentationItem]]:
    """Split a batch into groups that can be stacked."""
    groups: dict[tuple[int, ...], list[SegmentationItem]] = defaultdict(list)
    for item in batch:
        groups[tuple(item.image.shape)].append(item)
    return list(groups.values())


def score(
    segmenter: Segmenter, dataset: PackedDataset, recipe: Segmentation, resources: Resources
) -> SegmentationScores:
    """Score all annotated images of a split; the same result on every process."""
    classes = segmenter.num_classes
    counts = torch.zeros(classes, classes, dtype=torch.int64)
    for each in predict(segmenter, dataset, recipe, resources, dataset.annotated_indices):
        counts += count_pixels(each.truth, each.predicted, classes)
    # NCCL sums on the device only
    return SegmentationScores(distributed.all_reduce_sum(counts.to(pick_device(resources))).cpu())
