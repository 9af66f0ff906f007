import colorsys
import random

import pytest
import torch
from torch import Tensor

from asl_core.data.samples import Sample
from asl_core.randomness import seeded_globals
from asl_core.transfer.segmentation import augment
from asl_core.transfer.segmentation.augment import (
    ShortSide,
    TrainingCrop,
    collate_segmentation,
    distort_colours,
    scale_saturation,
    size_with_short_side,
)


def sample(height: int, width: int) -> Sample:
    """Return an image whose red channel is 40 times its semantic map."""
    generator = torch.Generator().manual_seed(height * 1000 + width)
    coarse = torch.randint(0, 5, (1, 1, 5, 4), generator=generator).float()
    semantic = torch.nn.functional.interpolate(coarse, (height, width))[0, 0].to(torch.uint8)
    return Sample(3, 7, torch.stack([semantic * 40, semantic, semantic]), semantic=semantic)


@pytest.fixture
def plain_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(augment, "distort_colours", lambda image: image)


@pytest.mark.usefixtures("plain_colours")
@pytest.mark.parametrize("seed", range(6))
def test_image_and_map_stay_aligned_and_padding_is_ignored(seed: int) -> None:
    transform = TrainingCrop(crop_size=24, scale_range=(0.5, 2.0))
    with seeded_globals(seed):
        item = transform(sample(30, 40))
    assert item.image.shape == (3, 24, 24)
    assert item.semantic.shape == (24, 24)
    height, width = item.size.tolist()
    assert item.image[:, height:].sum() == item.image[:, :, width:].sum() == 0
    assert (item.semantic[height:] == 255).all()
    assert (item.semantic[:, width:] == 255).all()
    shown, labels = item.image[0, :height, :width].float() / 40, item.semantic[:height, :width]
    assert labels.max() < 5
    # bilinear and nearest differ along borders between classes only
    assert ((shown - labels).abs() < 0.05).float().mean() > 0.6


@pytest.mark.usefixtures("plain_colours")
def test_scale_one_shows_the_short_side_whole() -> None:
    transform = TrainingCrop(crop_size=24, scale_range=(1.0, 1.0), flip=0.0)
    with seeded_globals(0):
        item = transform(sample(24, 24))
    assert torch.equal(item.semantic, sample(24, 24).semantic)
    assert item.size.tolist() == [24, 24]


@pytest.mark.usefixtures("plain_colours")
def test_flip_mirrors_image_and_map() -> None:
    flipped, straight = (
        TrainingCrop(24, (1.0, 1.0), flip=flip)(sample(24, 24)) for flip in (1.0, 0.0)
    )
    assert torch.equal(flipped.image, straight.image.flip(2))
    assert torch.equal(flipped.semantic, straight.semantic.flip(1))


def places(semantic: Tensor, share: float, draws: int = 60) -> list[tuple[int, int]]:
    transform = TrainingCrop(crop_size=8, category_share_max=share)
    with seeded_globals(0):
        return [transform.place(semantic) for _ in range(draws)]


def test_crops_of_one_dominant_class_are_drawn_again() -> None:
    semantic = torch.zeros(8, 40, dtype=torch.uint8)
    semantic[:, 28:] = 1
    dominated = [left for _, left in places(semantic, 0.75) if not 22 < left < 28 - 1]
    unlimited = [left for _, left in places(semantic, 2.0) if not 22 < left < 28 - 1]
    assert len(dominated) < len(unlimited) / 2


def test_ignored_pixels_do_not_dominate_and_hopeless_maps_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draws: list[int] = []

    def draw_place(self: TrainingCrop, height: int, width: int) -> tuple[int, int]:
        draws.append(1)
        return 0, 0

    monkeypatch.setattr(TrainingCrop, "draw_place", draw_place)
    semantic = torch.full((8, 8), 255, dtype=torch.uint8)
    semantic[0, :2] = torch.tensor([1, 2])
    TrainingCrop(crop_size=8).place(semantic)
    assert len(draws) == 1
    TrainingCrop(crop_size=8).place(torch.full_like(semantic, 255))
    assert len(draws) == 1 + 11


def test_colours_change_within_bounds_and_by_the_seed_alone() -> None:
    image = torch.randint(0, 256, (3, 6, 5), dtype=torch.uint8)
    results = []
    for seed in range(40):
        with seeded_globals(seed):
            results.append(distort_colours(image))
        with seeded_globals(seed):
            assert torch.equal(distort_colours(image), results[-1])
    assert all(x.dtype == torch.uint8 and x.shape == image.shape for x in results)
    unchanged = sum(torch.equal(x, image) for x in results)
    assert 0 < unchanged < 20  # 1 in 16 is expected


def test_grey_keeps_its_channels_equal() -> None:
    grey = torch.full((3, 4, 4), 100, dtype=torch.uint8)
    random.seed(0)
    for _ in range(20):
        distorted = distort_colours(grey).int()
        assert (distorted - distorted[:1]).abs().max() <= 1


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.5, 40.0])
def test_saturation_is_scaled_in_hsv(factor: float) -> None:
    generator = torch.Generator().manual_seed(2)
    image = torch.randint(0, 256, (3, 9, 7), dtype=torch.uint8, generator=generator)
    image[:, 0, 0] = 0
    image[:, 0, 1] = 200
    changed = scale_saturation(image, factor)
    for row in range(9):
        for column in range(7):
            h, s, v = colorsys.rgb_to_hsv(*(image[:, row, column] / 255).tolist())
            expected = colorsys.hsv_to_rgb(h, min(factor * s, 1.0), v)
            found = changed[:, row, column] / 255
            assert torch.allclose(found, torch.tensor(expected), atol=0.51 / 255)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), (64, 85)), ((640, 480), (85, 64)), ((64, 64), (64, 64)),
        ((100, 400), (64, 256)), ((100, 800), (32, 256)), ((800, 100), (256, 32)),
    ],
)  # fmt: skip
def test_short_side_keeps_the_proportions(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert size_with_short_side(*size, 64) == expected


def test_test_image_is_resized_and_its_map_is_not() -> None:
    item = ShortSide(16)(sample(20, 30))
    assert item.image.shape == (3, 16, 24)
    assert item.semantic.shape == (20, 30)
    assert item.size.tolist() == [16, 24]


def test_an_image_without_map_is_ignored_whole() -> None:
    item = ShortSide(16)(Sample(0, 0, torch.zeros(3, 16, 17, dtype=torch.uint8)))
    assert (item.semantic == 255).all()


def test_items_are_stacked_with_their_indices() -> None:
    items = [TrainingCrop(16)(sample(20, 30)) for _ in range(3)]
    batch = collate_segmentation(items)
    assert batch.images.shape == (3, 3, 16, 16)
    assert batch.semantic.shape == (3, 16, 16)
    assert batch.sizes.shape == (3, 2)
    assert batch.indices.tolist() == [3, 3, 3]
