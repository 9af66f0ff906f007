"""Average precision by COCO's protocol."""

import contextlib
import copy
import io
import math
from typing import Any, Literal, cast

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from asl_core.data.masks import as_coco, decode_masks, encode_masks, tight_boxes
from asl_core.transfer.detection.evaluate import (
    coco_metrics,
    coco_results,
    coco_scores,
    score,
    to_original,
)
from asl_core.transfer.detection.heads import Detections

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
"""pycocotools' masks do not know NumPy 2's copy keyword yet."""


def ground_truth(num_images: int = 6, seed: int = 0) -> dict[str, Any]:
    """Random blobs of three classes; the first image has none, one object is a crowd."""
    generator = np.random.default_rng(seed)
    images, annotations = [], []
    for image_id in range(1, num_images + 1):
        height, width = 40 + image_id, 60 - image_id
        images.append({"id": image_id, "height": height, "width": width})
        for _ in range(0 if image_id == 1 else 4):
            y, x = generator.integers(0, 20, 2)
            h, w = generator.integers(6, 20, 2)
            mask = np.zeros((1, height, width), dtype=bool)
            mask[0, y : y + h, x : x + w] = generator.random((h, w)) < 0.8
            annotations.append(annotation(len(annotations) + 1, image_id, mask, generator))
    annotations[3]["iscrowd"] = 1
    categories = [{"id": i, "name": str(i)} for i in (1, 2, 3)]
    return {"images": images, "annotations": annotations, "categories": categories}


def annotation(
    number: int, image_id: int, mask: np.ndarray, generator: np.random.Generator
) -> dict[str, Any]:
    x1, y1, x2, y2 = tight_boxes(mask)[0].tolist()
    return {
        "id": number,
        "image_id": image_id,
        "category_id": int(generator.integers(1, 4)),
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": float(mask.sum()),
        "iscrowd": 0,
        "segmentation": as_coco(encode_masks(mask)[0], *mask.shape[1:]),
    }


def as_results(truth: dict[str, Any], score: float = 0.9) -> list[dict[str, Any]]:
    keys = ("image_id", "category_id", "bbox", "segmentation")
    chosen = [a for a in truth["annotations"] if not a["iscrowd"]]
    return [{**{key: a[key] for key in keys}, "score": score} for a in chosen]


def noisy_results(truth: dict[str, Any]) -> list[dict[str, Any]]:
    """Shifted, mislabelled and invented detections."""
    generator = np.random.default_rng(7)
    results = []
    for result in as_results(truth) * 3:
        height, width = result["segmentation"]["size"]
        mask = decode_masks([result["segmentation"]["counts"]], height, width).numpy()
        mask = np.roll(mask, generator.integers(-3, 4, 2), axis=(1, 2))
        x1, y1, x2, y2 = tight_boxes(mask)[0].tolist()
        label = result["category_id"] if generator.random() < 0.8 else 1
        results.append(
            {
                "image_id": result["image_id"],
                "category_id": label,
                "score": float(generator.random()),
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "segmentation": as_coco(encode_masks(mask)[0], height, width),
            }
        )
    return results


def test_the_ground_truth_as_detections_scores_100() -> None:
    truth = ground_truth()
    metrics = coco_metrics(coco_scores(truth, as_results(truth)))
    assert metrics == pytest.approx(
        dict.fromkeys(
            ["ap_box", "ap_box50", "ap_box75", "ap_mask", "ap_mask50", "ap_mask75"], 100.0
        )
    )


def test_no_detections_score_0() -> None:
    assert set(coco_metrics(coco_scores(ground_truth(), [])).values()) == {0.0}


@pytest.mark.parametrize("detected", [True, False])
def test_where_there_is_nothing_to_find_there_is_no_average_precision(detected: bool) -> None:
    truth = ground_truth()
    results = as_results(truth) if detected else []
    for annotation in truth["annotations"]:
        annotation["iscrowd"] = 1
    assert all(math.isnan(value) for value in coco_metrics(coco_scores(truth, results)).values())


def test_the_numbers_are_those_of_pycocotools() -> None:
    truth = ground_truth()
    results = noisy_results(truth)
    metrics = coco_metrics(coco_scores(truth, results))
    assert 5 < metrics["ap_box"] < 95
    with contextlib.redirect_stdout(io.StringIO()):
        for task, iou_type in cast(Any, (("box", "bbox"), ("mask", "segm"))):
            coco: Any = COCO()
            coco.dataset = copy.deepcopy(truth)
            coco.createIndex()
            evaluation = COCOeval(coco, coco.loadRes(copy.deepcopy(results)), iou_type)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            found = [metrics[f"ap_{task}{suffix}"] for suffix in ("", "50", "75")]
            assert found == pytest.approx((100 * evaluation.stats[:3]).tolist(), abs=1e-9)


@pytest.mark.parametrize(("task", "iou_type"), [("box", "bbox"), ("mask", "segm")])
def test_the_area_under_a_precision_curve_is_the_average_precision(
    task: str, iou_type: Literal["bbox", "segm"]
) -> None:
    truth = ground_truth()
    results = noisy_results(truth)
    scores = coco_scores(truth, results)
    metrics, curves = coco_metrics(scores), scores[iou_type].curves
    for threshold, suffix in ((0.5, "50"), (0.75, "75")):
        assert curves[threshold].shape == (101,)
        assert (curves[threshold].diff() <= 0).all()
        area = 100 * curves[threshold].mean().item()
        assert area == pytest.approx(metrics[f"ap_{task}{suffix}"], abs=1e-9)
    nothing = score(truth, [], iou_type).curves
    assert all(not curve.any() for curve in nothing.values())


def test_scoring_leaves_its_arguments_alone() -> None:
    truth = ground_truth()
    results = noisy_results(truth)
    before = copy.deepcopy((truth, results))
    coco_scores(truth, results)
    assert (truth, results) == before


def test_detections_are_written_in_pixels_of_the_original() -> None:
    probabilities = torch.ones(1, 28, 28)
    detections = Detections(
        torch.tensor([[8.0, 4, 24, 12]]), torch.tensor([0.75]), torch.tensor([3]), probabilities
    )
    (result,) = coco_results(detections, 17, size=(16, 32), original_size=(40, 64))
    assert result["bbox"] == [16.0, 10.0, 32.0, 20.0]
    assert (result["image_id"], result["category_id"], result["score"]) == (17, 3, 0.75)
    mask = decode_masks([result["segmentation"]["counts"].encode()], 40, 64)[0]
    expected = torch.zeros(40, 64, dtype=torch.bool)
    expected[10:30, 16:48] = True
    assert torch.equal(mask, expected)


def test_the_two_axes_are_scaled_apart() -> None:
    box = torch.tensor([[1.0, 1, 2, 2]])
    assert to_original(box, (10, 10), (20, 30)).tolist() == [[3, 2, 6, 4]]
