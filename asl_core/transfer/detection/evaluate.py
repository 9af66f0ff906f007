"""From detections to COCO's average precision."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from faster_coco_eval import COCO
from faster_coco_eval.core import COCOeval_faster
from torch import Tensor

from asl_core import distributed
from asl_core.data.loaders import evaluation_batches
from asl_core.data.masks import encode_masks
from asl_core.data.shards import PackedDataset
from asl_core.engine.devices import autocast, move, pick_device
from asl_core.recipes.optimisation import Resources
from asl_core.transfer.detection.augment import FitIntoSquare, collate_detection
from asl_core.transfer.detection.corrections import paste_masks
from asl_core.transfer.detection.heads import Detections
from asl_core.transfer.detection.model import MaskRcnn

logger = logging.getLogger(__name__)

CocoResults = list[dict[str, Any]]
"""Detections in COCO's result format: image_id, category_id, score, bbox, segmentation (RLE)."""

IouType = Literal["bbox", "segm"]
NAMES: dict[IouType, str] = {"bbox": "box", "segm": "mask"}
"""Of the tasks, in metrics and pictures."""
CURVES = (0.5, 0.75)
"""IoU thresholds of the precision-recall curves."""

STATISTICS = ("", "50", "75")
"""The first three of COCO's summary: AP over IoU .50:.05:.95, AP at .50, AP at .75."""


@dataclass(frozen=True)
class Scores:
    """What COCO's protocol says of one task, boxes or masks.

    Objects of all sizes, at most 100 detections an image, crowd regions neither found nor missed.

    Attributes:
        average: AP over IoU .50:.05:.95, AP at .50, AP at .75, in percent; zeros when nothing was
            detected, nan when there is nothing to find, crowd regions apart.
        curves: IoU threshold -> precision at 101 recalls from 0 to 1, the mean over the classes,
            (101,), float64, in [0, 1]; the area under the first is AP50.
    """

    average: tuple[float, ...]
    curves: dict[float, Tensor]


def coco_scores(ground_truth: dict[str, Any], results: CocoResults) -> dict[IouType, Scores]:
    """Score the detections of all images as boxes and as masks.

    Args:
        ground_truth: In COCO's JSON form.
        results: In the coordinates of the original images.
    """
    return {task: score(ground_truth, results, task) for task in NAMES}


def coco_metrics(scores: dict[IouType, Scores]) -> dict[str, float]:
    """Return ap_box, ap_box50, ap_box75, ap_mask, ap_mask50, ap_mask75, in percent."""
    return {
        f"ap_{name}{suffix}": value
        for task, name in NAMES.items()
        for suffix, value in zip(STATISTICS, scores[task].average, strict=True)
    }


def score(ground_truth: dict[str, Any], results: CocoResults, task: IouType) -> Scores:
    """Score detections as boxes or as masks."""
    if not results or all(each["iscrowd"] for each in ground_truth["annotations"]):
        average = 0.0 if any(not a["iscrowd"] for a in ground_truth["annotations"]) else math.nan
        nothing = {threshold: torch.zeros(101, dtype=torch.float64) for threshold in CURVES}
        return Scores((average,) * len(STATISTICS), nothing)
    evaluation = _evaluate(ground_truth, results, task)
    average = tuple(100.0 * float(value) for value in evaluation.stats[: len(STATISTICS)])
    return Scores(average, _curves(evaluation))


def _curves(evaluation: COCOeval_faster) -> dict[float, Tensor]:
    thresholds = [round(float(value), 2) for value in evaluation.params.iouThrs]
    curves = {}
    for threshold in CURVES:
        # (IoU, recall, class, size, number): all sizes come first, most detections last
        by_class = torch.as_tensor(evaluation.eval["precision"])[
            thresholds.index(threshold), :, :, 0, -1
        ].double()  # (101, K), -1 for a class without objects
        present = by_class[0] >= 0
        curves[threshold] = by_class[:, present].mean(dim=1)
    return curves


def _evaluate(
    ground_truth: dict[str, Any], results: CocoResults, iou_type: IouType
) -> COCOeval_faster:
    if iou_type == "segm":
        # with a box in it a result's area would be that of the box
        results = [{k: v for k, v in result.items() if k != "bbox"} for result in results]
    truth = COCO(ground_truth, use_deepcopy=True)
    evaluation = COCOeval_faster(
        truth, truth.loadRes(results), iouType=iou_type, print_function=logger.debug
    )
    evaluation.run()
    return evaluation


def detect_all(
    model: MaskRcnn,
    dataset: PackedDataset,
    *,
    image_size: int,
    precision: str,
    resources: Resources,
    batch_size: int = 8,
) -> CocoResults:
    """Return the detections of all annotated images of a split; each process looks at its share.

    All have the whole list.
    """
    device = pick_device(resources)
    model.to(device).eval()
    batches: Any = evaluation_batches(
        dataset,
        FitIntoSquare(image_size),
        collate_detection,
        batch_size=batch_size,
        num_workers=resources.num_workers,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        subset=dataset.annotated_indices,
    )
    results: CocoResults = []
    for batch in batches:
        with autocast(device, precision):
            detections = model.detect(move(batch, device))
        for i, of_image in enumerate(detections):
            results += coco_results(
                of_image, batch.image_ids[i], batch.sizes[i], batch.original_sizes[i]
            )
    return [result for share in distributed.gather_objects(results) for result in share]


def coco_results(
    detections: Detections,
    image_id: int,
    size: tuple[int, int],
    original_size: tuple[int, int],
) -> CocoResults:
    """Return one image's detections in COCO's form and in the original image's pixels.

    Args:
        detections: In pixels of the resized image.
        image_id: Number of the image.
        size: Height and width of the resized image.
        original_size: Height and width of the original.
    """
    height, width = original_size
    boxes = to_original(detections.boxes.float(), size, original_size)
    masks = paste_masks(detections.mask_probabilities.float(), boxes, height, width)
    codes = encode_masks(masks.cpu().numpy())
    x1, y1, x2, y2 = boxes.cpu().unbind(1)
    xywh = torch.stack([x1, y1, x2 - x1, y2 - y1], dim=1).tolist()
    scores, labels = detections.scores.float().tolist(), detections.labels.tolist()
    return [
        {
            "image_id": image_id,
            "category_id": label,
            "score": score,
            "bbox": box,
            "segmentation": {"size": [height, width], "counts": code.decode("ascii")},
        }
        for label, score, box, code in zip(labels, scores, xywh, codes, strict=True)
    ]


def to_original(boxes: Tensor, size: Sequence[int], original_size: Sequence[int]) -> Tensor:
    """Scale boxes of a resized image to the original, axis by axis; (K, 4)."""
    y, x = original_size[0] / size[0], original_size[1] / size[1]
    return boxes * boxes.new_tensor([x, y, x, y])
