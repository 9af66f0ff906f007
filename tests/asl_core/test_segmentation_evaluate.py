import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_jaccard_index

from asl_core.transfer.segmentation.augment import SegmentationItem
from asl_core.transfer.segmentation.evaluate import (
    SegmentationScores,
    count_pixels,
    of_equal_size,
    slide,
    window_starts,
)


class Pointwise(nn.Module):
    """Scores each pixel by itself, and remembers what it was shown."""

    num_classes = 2

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def logits(self, images: Tensor) -> Tensor:
        self.seen.append(tuple(images.shape))
        return images[:, :2] * 3


class Constant(nn.Module):
    """Scores a window by its number."""

    num_classes = 1
    calls = 0

    def logits(self, images: Tensor) -> Tensor:
        self.calls += 1
        return torch.full((len(images), 1, 2, 2), float(self.calls))


@given(length=st.integers(8, 60), stride=st.integers(1, 8))
def test_windows_cover_each_pixel_and_stay_inside(length: int, stride: int) -> None:
    starts = window_starts(length, 8, stride)
    covered = {pixel for start in starts for pixel in range(start, start + 8)}
    assert covered == set(range(length))
    assert len(set(starts)) == len(starts)


def test_windows_of_the_paper_lie_where_the_reference_puts_them() -> None:
    assert window_starts(512, 512, 341) == [0]
    assert window_starts(683, 512, 341) == [0, 171]
    assert window_starts(1000, 512, 341) == [0, 341, 488]


def test_one_window_suffices_when_the_crop_covers_the_image() -> None:
    model, images = Pointwise(), torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(slide(model, images, 8, 5), images[:, :2] * 3)
    assert model.seen == [(2, 3, 8, 8)]


def test_overlapping_windows_agree_where_each_pixel_is_scored_by_itself() -> None:
    model, images = Pointwise(), torch.randn(2, 3, 8, 19)
    torch.testing.assert_close(slide(model, images, 8, 5), images[:, :2] * 3)
    assert len(model.seen) == 4


def test_an_image_narrower_than_a_window_is_padded_and_cut_again() -> None:
    model, images = Pointwise(), torch.randn(2, 3, 5, 21)
    torch.testing.assert_close(slide(model, images, 8, 5), images[:, :2] * 3)


def test_logits_are_averaged_where_windows_overlap() -> None:
    values = slide(Constant(), torch.randn(1, 3, 4, 6), 4, 2)[0, 0, 0]
    assert values.tolist() == [1, 1, 1.5, 1.5, 2, 2]


def random_maps() -> tuple[Tensor, Tensor]:
    """Return truth with ignored pixels and predictions; class 5 occurs nowhere, 4 is only seen."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 4, (3, 17, 13), generator=generator).to(torch.uint8)
    predicted = torch.randint(0, 5, (3, 17, 13), generator=generator)
    truth[torch.rand(truth.shape, generator=generator) < 0.2] = 255
    return truth, predicted


def test_scores_equal_torchmetrics_class_by_class() -> None:
    truth, predicted = random_maps()
    scores = SegmentationScores(count_pixels(truth, predicted, 6))
    common = {"num_classes": 6, "ignore_index": 255}
    iou = multiclass_jaccard_index(predicted, truth.long(), average="none", **common)
    torch.testing.assert_close(scores.iou[:5].float(), iou[:5])
    assert scores.iou[5].isnan()
    assert scores.iou[4] == 0  # predicted, never true: an error that counts
    recall = multiclass_accuracy(predicted, truth.long(), average="none", **common)
    torch.testing.assert_close(scores.accuracy[:4].float(), recall[:4])
    assert scores.accuracy[4:].isnan().all()
    metrics = scores.metrics()
    assert metrics["miou"] == pytest.approx(100 * iou[:5].mean().item(), rel=1e-5)
    assert metrics["macc"] == pytest.approx(100 * recall[:4].mean().item(), rel=1e-5)
    accuracy = multiclass_accuracy(predicted, truth.long(), average="micro", **common)
    assert metrics["aacc"] == pytest.approx(100 * accuracy.item(), rel=1e-5)


def test_ignored_pixels_are_not_counted() -> None:
    truth, predicted = random_maps()
    changed = torch.where(truth == 255, (predicted + 1) % 5, predicted)
    counts = count_pixels(truth, predicted, 6)
    assert torch.equal(count_pixels(truth, changed, 6), counts)
    assert counts.sum() == (truth != 255).sum()


def test_counts_of_parts_add_up_to_the_whole() -> None:
    truth, predicted = random_maps()
    parts = sum(count_pixels(t, p, 6) for t, p in zip(truth, predicted, strict=True))
    assert torch.equal(torch.as_tensor(parts), count_pixels(truth, predicted, 6))


def test_perfect_prediction_scores_one_hundred() -> None:
    truth, _ = random_maps()
    scores = SegmentationScores(count_pixels(truth, truth.long().clamp(max=5), 6))
    assert set(scores.metrics().values()) == {100.0}


def test_images_of_one_size_go_together() -> None:
    shapes = [(3, 8, 9), (3, 8, 8), (3, 8, 9)]
    items = [
        SegmentationItem(torch.zeros(shape), torch.zeros(1), torch.zeros(2), i)
        for i, shape in enumerate(shapes)
    ]
    assert [[item.index for item in group] for group in of_equal_size(items)] == [[0, 2], [1]]
