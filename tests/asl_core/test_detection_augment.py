"""Large-scale jitter and what the detector reads at test time."""

import torch

from asl_core.data.samples import Instances, Sample
from asl_core.randomness import seeded_globals
from asl_core.transfer.detection.augment import (
    PADDING_GREY,
    DetectionItem,
    FitIntoSquare,
    LargeScaleJitter,
    Placement,
    collate_detection,
    fitted_size,
    nearest_pixels,
)


def sample(height: int = 40, width: int = 60, crowd: bool = False) -> Sample:
    """Two rectangles on black: red at the top left, blue at the bottom right."""
    masks = torch.zeros(2, height, width, dtype=torch.bool)
    masks[0, 2:12, 3:23] = True
    masks[1, 25:38, 40:58] = True
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    image[0][masks[0]] = 255
    image[2][masks[1]] = 255
    boxes = torch.tensor([[3.0, 2, 23, 12], [40, 25, 58, 38]])
    instances = Instances(boxes, torch.tensor([4, 7]), masks, torch.tensor([crowd, False]))
    return Sample(index=5, image_id=99, image=image, instances=instances)


def jittered(transform: LargeScaleJitter, seed: int, source: Sample | None = None) -> DetectionItem:
    with seeded_globals(seed):
        return transform(source or sample())


def test_at_scale_one_without_flip_the_image_lies_unchanged_at_the_top_left() -> None:
    item = jittered(LargeScaleJitter(60, (1.0, 1.0), flip=0.0), 0)
    assert torch.equal(item.image[:, :40], sample().image)
    assert (item.image[:, 40:] == PADDING_GREY).all()
    assert item.target["boxes"].tolist() == [[3, 2, 23, 12], [40, 25, 58, 38]]
    assert item.target["labels"].tolist() == [5, 8]
    assert item.size == (60, 60)
    assert item.original_size == (40, 60)
    assert (item.image_id, item.index) == (99, 5)


def test_boxes_are_the_annotated_ones_scaled_and_cut_whatever_the_draw() -> None:
    transform, annotated = LargeScaleJitter(48, (0.1, 4.0), flip=0.0), sample().instances
    assert annotated is not None
    seen = set()
    for seed in range(60):
        target = jittered(transform, seed).target
        with seeded_globals(seed):
            scale, offset, _ = torch.rand(3, dtype=torch.float64).tolist()
        height, width = fitted_size(40, 60, 48 * (0.1 + 3.9 * scale))
        corner = [round(max(side - 48, 0) * offset) for side in (width, height)]  # x, y
        ends = [min(48, width), min(48, height)]
        expected = {}
        for label, box in zip(annotated.labels.tolist(), annotated.boxes.tolist(), strict=True):
            edges = []
            for k, edge in enumerate(box):
                place = edge * (width / 60, height / 40)[k % 2] - corner[k % 2]
                edges.append(min(max(place, 0.0), ends[k % 2]))
            expected[label + 1] = torch.tensor(edges)
        seen.add(len(target["boxes"]))
        for label, box, mask in zip(
            target["labels"].tolist(), target["boxes"], target["masks"], strict=True
        ):
            assert torch.allclose(box, expected.pop(label), atol=1e-4)
            rows, columns = mask.any(dim=1).nonzero(), mask.any(dim=0).nonzero()
            tight = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert (box - torch.stack(tight)).abs().max() <= 0.5001  # half a pixel: see the class
        for box in expected.values():  # what is not there shows no pixel's centre
            assert min((box[2] - box[0]).item(), (box[3] - box[1]).item()) <= 1
        assert len(target["labels"]) == len(target["masks"]) == len(target["boxes"])
    assert seen == {0, 1, 2}  # crops that miss both, one, none


def test_the_box_of_a_cut_object_is_that_of_what_is_seen() -> None:
    """An L: a foot along the bottom, and a leg at the right, which the crop does not show."""
    mask = torch.zeros(1, 40, 40, dtype=torch.bool)
    mask[0, 30:38, 2:38] = True
    mask[0, 2:38, 30:38] = True
    instances = Instances(
        torch.tensor([[2.0, 2, 38, 38]]), torch.tensor([0]), mask, torch.tensor([False])
    )
    image = torch.zeros(3, 40, 40, dtype=torch.uint8)
    bent = Sample(index=0, image_id=1, image=image, instances=instances)
    placed = Placement((1.0, 1.0), (10, 0))
    pixels = torch.arange(25)
    target = LargeScaleJitter(25).target(bent.instances, pixels + 10, pixels, placed)
    # nearly the bounds 2, 20, 25, 25: a pixel is left to what the annotation knows better
    assert target["boxes"].tolist() == [[2, 19, 25, 25]]


def test_masks_stay_on_their_objects_pixels() -> None:
    for seed in range(20):
        item = jittered(LargeScaleJitter(64, (0.7, 2.0)), seed)
        for label, mask in zip(item.target["labels"], item.target["masks"], strict=True):
            channel = {5: 0, 8: 2}[int(label)]
            inside = item.image[channel][mask].float().mean()
            assert inside > 230


def test_the_flip_mirrors_pixels_boxes_and_masks() -> None:
    plain = jittered(LargeScaleJitter(50, (0.9, 1.4), flip=0.0), 3)
    mirrored = jittered(LargeScaleJitter(50, (0.9, 1.4), flip=1.0), 3)
    assert torch.equal(mirrored.image.flip(2), plain.image)
    assert torch.equal(mirrored.target["masks"].flip(2), plain.target["masks"])
    x1, y1, x2, y2 = plain.target["boxes"].unbind(1)
    expected = torch.stack([50 - x2, y1, 50 - x1, y2], dim=1)
    assert torch.equal(mirrored.target["boxes"], expected)


def test_crowds_are_no_targets() -> None:
    item = jittered(LargeScaleJitter(60, (1.0, 1.0)), 0, sample(crowd=True))
    assert item.target["labels"].tolist() == [8]


def test_an_image_without_objects_has_an_empty_target() -> None:
    bare = Sample(index=0, image_id=1, image=torch.zeros(3, 40, 60, dtype=torch.uint8))
    target = jittered(LargeScaleJitter(32), 0, bare).target
    assert target["boxes"].shape == (0, 4)
    assert target["labels"].shape == (0,)
    assert target["masks"].shape == (0, 32, 32)


def test_the_test_size_has_the_longest_side_of_the_square() -> None:
    item = FitIntoSquare(90)(sample())
    assert item.size == (60, 90)
    assert item.image.shape == (3, 90, 90)
    assert fitted_size(480, 640, 1024) == (768, 1024)
    assert fitted_size(1, 500, 64) == (1, 64)


def test_nearest_pixels_are_those_under_the_centres() -> None:
    assert nearest_pixels(3, 6, 0, 6).tolist() == [0, 0, 1, 1, 2, 2]
    assert nearest_pixels(6, 3, 1, 2).tolist() == [3, 5]


def test_a_batch_keeps_the_order_of_its_items() -> None:
    items = [FitIntoSquare(30)(sample()), FitIntoSquare(30)(sample(60, 30))]
    batch = collate_detection(items)
    assert batch.images.shape == (2, 3, 30, 30)
    assert batch.sizes == [(20, 30), (30, 15)]
    assert batch.original_sizes == [(40, 60), (60, 30)]
    assert batch.indices.tolist() == [5, 5]
