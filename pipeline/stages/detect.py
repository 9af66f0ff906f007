"""Detection transfer of a pre-trained encoder: Mask R-CNN, box and mask AP."""

import json
from collections import defaultdict
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from asl_core import distributed
from asl_core.data.masks import decode_masks
from asl_core.data.samples import Instances, Sample
from asl_core.data.shards import PackedDataset
from asl_core.modules.weights import save_weights
from asl_core.recipes.transfer import Detection
from asl_core.transfer.detection.evaluate import (
    NAMES,
    CocoResults,
    IouType,
    Scores,
    coco_metrics,
    coco_scores,
)
from asl_core.transfer.detection.train import (
    build_detector,
    detect_test_images,
    instance_dataset,
    train_detector,
)
from pipeline.rounding import fixed
from pipeline.stages.pictures import save_figure, save_image_grid
from pipeline.stages.request import StageRequest, StoredRun
from pipeline.stages.stored import load_stored
from pipeline.stages.training import begin_training

WEIGHTS = "detector.safetensors"
DRAWN_IMAGES, DRAWN_SIDE, DRAWN_SCORE = 8, 160, 0.5
"""How many pictures, their longest side in pixels, and the least score of a detection in them."""
COLOURS = ("#e6194b", "#3cb44b", "#ffe119", "#4363d8", "#f58231", "#911eb4", "#46f0f0", "#f032e6",
           "#bcf60c", "#fabebe")  # fmt: skip


def run(request: StageRequest[Detection]) -> dict[str, float]:
    """Train the detector; write its weights, the test split's detections, and pictures."""
    context = begin_training(request)
    dataset = request.inputs["dataset"]
    model = train_detector(request.recipe, request.inputs["encoder"], dataset, context)
    results = detect_test_images(model, request.recipe, dataset, request.resources)
    if distributed.rank() > 0:
        return {}
    scores = coco_scores(instance_dataset(dataset, "test").coco_ground_truth(), results)
    save_weights(request.out / WEIGHTS, model.state_dict())
    (request.out / "detections.json").write_text(json.dumps(results, allow_nan=False) + "\n")
    draw_detections(
        request.out / "pictures/detections.png", PackedDataset(dataset, "test"), results
    )
    draw_precision(request.out / "pictures/precision_recall.png", scores)
    for path in (WEIGHTS, "detections.json", "pictures/detections.png",
                 "pictures/precision_recall.png"):  # fmt: skip
        request.journal.artifact(path)
    return coco_metrics(scores)


def reevaluate(run: StoredRun[Detection]) -> dict[str, float]:
    """Detect in the test images once more with the stored weights."""
    dataset = run.inputs["dataset"]
    model = build_detector(run.recipe, run.inputs["encoder"], instance_dataset(dataset, "train"))
    load_stored(model, run.folder / WEIGHTS)
    results = detect_test_images(model, run.recipe, dataset, run.resources)
    return coco_metrics(coco_scores(instance_dataset(dataset, "test").coco_ground_truth(), results))


def draw_precision(path: Path, scores: dict[IouType, Scores]) -> None:
    """Draw precision by recall, the mean over the classes, for boxes and masks."""
    figure, axis = plt.subplots(figsize=(4.5, 3.5))
    for task, style in zip(NAMES, ("-", "--"), strict=True):
        for threshold, curve in scores[task].curves.items():
            label = f"{NAMES[task]}, IoU {threshold:.2f}: {fixed(100 * curve.mean().item(), 1)}"
            axis.plot(torch.linspace(0, 1, 101), curve, style, label=label)
    axis.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=9, title="AP [%]", title_fontsize=9)
    save_figure(figure, path)


def draw_detections(path: Path, dataset: PackedDataset, results: CocoResults) -> None:
    """Draw the first annotated images with their objects and with what was detected.

    Where nothing scores high enough, the picture says so, and how high the best one scores.
    """
    by_image: dict[int, CocoResults] = defaultdict(list)
    best: dict[int, float] = {}
    for result in results:
        image, score = result["image_id"], result["score"]
        best[image] = max(score, best.get(image, 0.0))
        if score >= DRAWN_SCORE:
            by_image[image].append(result)
    names = list(dataset.manifest.thing_classes or ())
    truths, found = [], []
    for index in dataset.annotated_indices[:DRAWN_IMAGES]:
        sample = dataset[index]
        assert sample.instances is not None  # the image is annotated
        truths.append(draw(sample, sample.instances, names, "no object"))
        detected = as_instances(by_image[sample.image_id], *sample.image.shape[-2:])
        highest = best.get(sample.image_id)
        none = "none" if highest is None else f"none, best {highest:.2f}"
        found.append(draw(sample, detected, names, none))
    detections_title = f"score >= {DRAWN_SCORE}"
    save_image_grid(path, {"ground truth": stack(truths), detections_title: stack(found)})


def as_instances(results: CocoResults, height: int, width: int) -> Instances:
    """Return one image's detections as objects."""
    boxes = torch.tensor([result["bbox"] for result in results]).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    codes = [result["segmentation"]["counts"].encode("ascii") for result in results]
    return Instances(
        boxes=boxes,
        labels=torch.tensor([result["category_id"] - 1 for result in results], dtype=torch.int64),
        masks=decode_masks(codes, height, width),
        crowd=torch.zeros(len(results), dtype=torch.bool),
    )


def draw(sample: Sample, objects: Instances, names: list[str], none: str) -> Tensor:
    """Return the enlarged image with masks, boxes and class names, (3, H, W) uint8.

    Args:
        sample: The image.
        objects: What is drawn on it.
        names: Of the classes.
        none: What is written on it where there is no object.
    """
    height, width = sample.image.shape[-2:]
    scale = DRAWN_SIDE / max(height, width)
    size = [max(1, round(height * scale)), max(1, round(width * scale))]
    image = F.interpolate(sample.image[None].float(), size=size)[0].to(torch.uint8)
    if not len(objects.boxes):
        return write(image, none)
    masks = F.interpolate(objects.masks[None].float(), size=size)[0].bool()
    labels = objects.labels.tolist()
    colours: list[str | tuple[int, int, int]] = [COLOURS[label % len(COLOURS)] for label in labels]
    image = draw_segmentation_masks(image, masks, alpha=0.5, colors=colours)
    # boxes that rounding has made empty are widened to the pixel that they lie in
    boxes = (objects.boxes * scale).round()
    boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    image = draw_bounding_boxes(image, boxes, colors=colours, width=2)
    for (x, y, *_), label in zip(boxes.int().tolist(), labels, strict=True):
        image = write(image, names[label], x, y)
    return image


def write(image: Tensor, text: str, x: int = 0, y: int = 0) -> Tensor:
    """Return an image with a text on black, its upper left corner at (x, y), (3, H, W) uint8."""
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(size=12)
    pen.rectangle((x, y, x + round(pen.textlength(text, font)) + 4, y + 15), fill="black")
    pen.text((x + 2, y), text, fill="white", font=font)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def stack(images: list[Tensor]) -> Tensor:
    """Put pictures of different sizes on white squares, in [0, 1]; (B, 3, S, S)."""
    padded = [
        F.pad(
            image,
            (0, DRAWN_SIDE - image.shape[2], 0, DRAWN_SIDE - image.shape[1]),
            value=255,
        )
        for image in images
    ]
    return torch.stack(padded).float() / 255
