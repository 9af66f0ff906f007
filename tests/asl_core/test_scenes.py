"""The embedded sources: annotations agree with the pixels, and splits share nothing."""

# pyright: reportOptionalMemberAccess=false, reportArgumentType=false

from pathlib import Path

import numpy as np
import pytest
import torch

from asl_core.data.masks import tight_boxes
from asl_core.data.prepare import prepare
from asl_core.data.shards import PackedDataset
from asl_core.data.sources.catalogue import open_source
from asl_core.data.sources.digits import material
from asl_core.data.sources.source import Item
from asl_core.recipes.datasets import Icons, Scenes

# pycocotools under NumPy 2; nothing a caller could do
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    folder = tmp_path_factory.mktemp("scenes")
    prepare(Scenes(image_size=48, train=40, test=2), folder, folder, name="scenes")
    return PackedDataset(folder, "train")


def test_train_and_test_share_no_digit() -> None:
    train = np.concatenate(material("train").numbers)
    test = np.concatenate(material("test").numbers)
    assert not np.intersect1d(train, test).size
    assert sorted([*train, *test]) == list(range(1797))


def test_train_and_test_share_no_digit_by_content_either() -> None:
    images = {
        split: {image.tobytes() for images in material(split).digits for image in images}
        for split in ("train", "test")
    }
    assert not images["train"] & images["test"]


def test_train_and_test_share_no_column_of_a_photograph() -> None:
    for train, test in zip(
        material("train").photographs, material("test").photographs, strict=True
    ):
        assert train.width + test.width == 640


def test_every_class_has_digits_in_both_splits() -> None:
    assert min(len(numbers) for numbers in material("test").numbers) >= 20


def test_boxes_are_tight_around_the_visible_masks(scenes: PackedDataset) -> None:
    for sample in scenes:
        expected = tight_boxes(sample.instances.masks.numpy())
        assert sample.instances.boxes.tolist() == expected.tolist()


def test_visible_masks_do_not_overlap(scenes: PackedDataset) -> None:
    assert all(sample.instances.masks.sum(dim=0).max() == 1 for sample in scenes)


def test_semantic_map_is_the_label_plus_one_where_an_object_is_visible(
    scenes: PackedDataset,
) -> None:
    for sample in scenes:
        expected = torch.zeros_like(sample.semantic)
        for mask, label in zip(sample.instances.masks, sample.instances.labels, strict=True):
            expected[mask] = int(label) + 1
        assert torch.equal(sample.semantic, expected)


def test_scenes_have_several_objects_that_sometimes_hide_each_other(scenes: PackedDataset) -> None:
    counts = scenes.instance_counts
    assert counts.min() >= 2
    assert counts.max() <= 6
    crossing = 0
    for sample in scenes:
        x1, y1, x2, y2 = sample.instances.boxes.T
        wide = torch.minimum(x2[:, None], x2) - torch.maximum(x1[:, None], x1)
        high = torch.minimum(y2[:, None], y2) - torch.maximum(y1[:, None], y1)
        crossing += int((((wide > 0) & (high > 0)).sum() > len(x1)).item())
    assert crossing > len(scenes) // 4


def test_more_training_images_leave_the_first_ones_as_they_were() -> None:
    few = open_source(Scenes(image_size=24, train=3, test=1), Path())
    many = open_source(Scenes(image_size=24, train=5, test=1), Path())
    first = [item.image for item in few.splits["train"].items() if isinstance(item, Item)]
    all_of_them = [item.image for item in many.splits["train"].items() if isinstance(item, Item)]
    assert all_of_them[:3] == first
    assert len(set(all_of_them)) == 5


def test_an_icon_is_a_digit_in_the_middle_of_a_background(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(Icons(image_size=32, train=60, test=1), tmp_path / "with", tmp_path / "with", name="i")
    monkeypatch.setattr("asl_core.data.sources.icons.digits.paint", lambda *_: None)
    recipe = Icons(image_size=32, train=60, test=1)
    prepare(recipe, tmp_path / "without", tmp_path / "without", name="i")
    painted, bare = (PackedDataset(tmp_path / name, "train") for name in ("with", "without"))
    assert set(painted.labels) == set(range(10))
    changed = torch.stack(
        [(painted[i].image.int() - bare[i].image.int()).abs().amax(dim=0) > 60 for i in range(60)]
    )  # (60, 32, 32); JPEG changes the rest a little
    assert changed[:, 8:24, 8:24].float().mean() > 0.25
    assert changed[:, [0, -1], :].float().mean() < 0.01
    for scene in changed:
        rows, columns = scene.nonzero().float().mean(dim=0)
        assert abs(rows - 15.5) < 4
        assert abs(columns - 15.5) < 5


def test_recipes_refuse_impossible_values() -> None:
    with pytest.raises(ValueError, match="train must be at least 1, got 0"):
        Scenes(train=0)
    with pytest.raises(ValueError, match="objects must be"):
        Scenes(objects=(4, 2))
    with pytest.raises(ValueError, match="max_rejected_share must be in"):
        Icons(max_rejected_share=1.0)
