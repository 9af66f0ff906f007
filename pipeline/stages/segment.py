"""Segment images with UPerNet on a pre-trained encoder."""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from asl_core import distributed
from asl_core.data.samples import IGNORED_LABEL
from asl_core.data.shards import PackedDataset
from asl_core.modules.weights import save_weights
from asl_core.recipes.transfer import Segmentation
from asl_core.transfer.segmentation.evaluate import SegmentationScores, predict, score
from asl_core.transfer.segmentation.model import Segmenter
from asl_core.transfer.segmentation.train import (
    build_segmenter,
    semantic_dataset,
    train_segmenter,
)
from pipeline.stages.pictures import save_image_grid
from pipeline.stages.request import StageRequest, StoredRun
from pipeline.stages.stored import load_stored
from pipeline.stages.training import begin_training

WEIGHTS = "segmenter.safetensors"
PICTURED = 8
"""Test images that are drawn."""


def run(request: StageRequest[Segmentation]) -> dict[str, float]:
    """Train the segmenter; write its weights, the IoU of each class, and segmentations."""
    context = begin_training(request)
    folder = request.inputs["dataset"]
    model = train_segmenter(request.recipe, request.inputs["encoder"], folder, context)
    test = semantic_dataset(folder, "test")
    scores = score(model, test, request.recipe, request.resources)
    columns = picture_segmentations(model, test, request)
    if distributed.rank() > 0:
        return {}
    save_weights(request.out / WEIGHTS, model.state_dict())
    write_class_scores(request.out / "classes.json", scores, test.manifest.semantic_classes or ())
    save_image_grid(request.out / "pictures/segmentations.png", columns)
    for name in ("classes.json", "pictures/segmentations.png"):
        request.journal.artifact(name)
    return scores.metrics()


def reevaluate(run: StoredRun[Segmentation]) -> dict[str, float]:
    """Segment the test images once more with the stored weights."""
    train, test = (semantic_dataset(run.inputs["dataset"], split) for split in ("train", "test"))
    model = build_segmenter(run.recipe, run.inputs["encoder"], train)
    load_stored(model, run.folder / WEIGHTS)
    return score(model, test, run.recipe, run.resources).metrics()


def write_class_scores(path: Path, scores: SegmentationScores, classes: tuple[str, ...]) -> None:
    """Write IoU and accuracy of each class in percent; null for a class that never occurs."""
    by_class = {
        name: {
            key: None if value.isnan() else 100.0 * value.item()
            for key, value in (("iou", scores.iou[k]), ("accuracy", scores.accuracy[k]))
        }
        for k, name in enumerate(classes)
    }
    text = json.dumps(by_class, indent=1, ensure_ascii=False, allow_nan=False)
    path.write_text(f"{text}\n", encoding="utf-8")


def picture_segmentations(
    model: Segmenter, dataset: PackedDataset, request: StageRequest[Segmentation]
) -> dict[str, Tensor]:
    """Return this process's share of the pictures: images, true and predicted maps."""
    columns: dict[str, list[Tensor]] = {"image": [], "ground truth": [], "prediction": []}
    chosen = dataset.annotated_indices[: PICTURED * distributed.world_size()]
    for each in predict(model, dataset, request.recipe, request.resources, chosen):
        columns["image"].append(dataset.read_image(each.index) / 255)
        columns["ground truth"].append(paint(each.truth))
        columns["prediction"].append(paint(each.predicted))
    return {title: stack_padded(images) for title, images in columns.items() if images}


def paint(labels: Tensor) -> Tensor:
    """Colour classes as PASCAL VOC does, bit by bit; what is ignored is white.

    Shape:
        - labels: (H, W). Output: (3, H, W), float in [0, 1].
    """
    classes = torch.arange(256)
    palette = torch.zeros(256, 3, dtype=torch.int64)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= ((classes >> (3 * bit + channel)) & 1) << (7 - bit)
    palette[IGNORED_LABEL] = 255
    return palette[labels.long()].permute(2, 0, 1) / 255


def stack_padded(images: list[Tensor]) -> Tensor:
    """Stack images of different sizes, white below and to the right of the smaller ones."""
    height, width = (max(image.shape[i] for image in images) for i in (1, 2))
    return torch.stack(
        [
            F.pad(image, (0, width - image.shape[2], 0, height - image.shape[1]), value=1.0)
            for image in images
        ]
    )
