"""Polygons of COCO's objects: kept when packed, drawn at the size of the crop."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from asl_core.data.masks import rasterise
from asl_core.data.prepare import prepare
from asl_core.data.samples import Sample
from asl_core.data.shards import PackedDataset
from asl_core.data.slices import slice_packed
from asl_core.recipes.datasets import Coco, Scenes
from asl_core.transfer.detection.augment import LargeScaleJitter, Placement

HEIGHT, WIDTH = 40, 60
TRIANGLE = [10.5, 5.0, 50.0, 8.25, 20.0, 35.5]
HALVES = [[5.0, 5.0, 20.0, 5.0, 20.0, 15.0, 5.0, 15.0], [30.0, 20.0, 50.0, 20.0, 50.0, 30.0]]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("coco")
    (root / "annotations").mkdir()
    runs = [WIDTH * HEIGHT // 2, 8 * HEIGHT, WIDTH * HEIGHT // 2 - 8 * HEIGHT]
    rle = {"size": [HEIGHT, WIDTH], "counts": runs}
    boxes = ([10.5, 5.0, 39.5, 30.5], [5.0, 5.0, 45.0, 25.0], [30.0, 0.0, 8.0, 40.0])
    for split in ("train2017", "val2017"):
        (root / split).mkdir()
        images, annotations = [], []
        for number in (1, 2):
            Image.new("RGB", (WIDTH, HEIGHT)).save(root / split / f"{number}.jpg")
            images.append(
                {"id": number, "file_name": f"{number}.jpg", "height": HEIGHT, "width": WIDTH}
            )
        for number, segmentation in enumerate(([TRIANGLE], HALVES, rle), start=1):
            annotations.append(
                {
                    "id": number, "image_id": 1 + number // 3, "category_id": 3, "area": 100.0,
                    "bbox": boxes[number - 1], "iscrowd": 0, "segmentation": segmentation,
                }
            )  # fmt: skip
        content = {
            "images": images, "annotations": annotations,
            "categories": [{"id": 3, "name": "thing"}],
        }  # fmt: skip
        (root / f"annotations/instances_{split}.json").write_text(json.dumps(content))
    prepare(Coco(path="."), root, root / "packed", name="toy")
    return root / "packed"


def first(packed: Path) -> Sample:
    return PackedDataset(packed, "train")[0]


def test_polygons_are_kept_as_the_source_has_them(packed: Path, tmp_path: Path) -> None:
    slice_packed(packed, tmp_path / "slice", {"train": 2, "test": 1})
    for folder in (packed, tmp_path / "slice"):
        one, two = PackedDataset(folder, "train")
        assert one.instances is not None
        assert two.instances is not None
        assert one.instances.polygons is not None
        found = [[polygon.tolist() for polygon in each] for each in one.instances.polygons]
        assert found == [[TRIANGLE], HALVES]
        assert two.instances.polygons == ((),)  # an RLE


def test_a_source_without_polygons_packs_no_file_for_them(packed: Path, tmp_path: Path) -> None:
    assert {"train-polygons.npz", "train-polygons.f32"} <= {path.name for path in packed.iterdir()}
    prepare(Scenes(image_size=32, train=3, test=2), tmp_path, tmp_path / "scenes", name="scenes")
    assert not list((tmp_path / "scenes").glob("*polygons*"))
    instances = first(tmp_path / "scenes").instances
    assert instances is not None
    assert instances.polygons is None


def test_masks_are_drawn_at_the_size_of_the_crop(packed: Path) -> None:
    sample = first(packed)
    assert sample.instances is not None
    rows, columns = torch.arange(HEIGHT), torch.arange(WIDTH)
    transform = LargeScaleJitter(160)
    same = transform.target(sample.instances, rows, columns, Placement((1.0, 1.0), (0, 0)))
    assert torch.equal(same["masks"][:, :HEIGHT, :WIDTH], sample.instances.masks)
    # three times as large, without the first 30 rows and 24 columns
    placed = Placement((3.0, 3.0), (30, 24))
    height, width = 3 * HEIGHT - 30, 3 * WIDTH - 24
    rows = (torch.arange(height) + 30) // 3
    columns = (torch.arange(width) + 24) // 3
    target = transform.target(sample.instances, rows, columns, placed)
    drawn = target["masks"][0, :height, :width]
    moved = (np.array(TRIANGLE, np.float32).reshape(-1, 2) * 3 - [24, 30]).astype(np.float32)
    assert torch.equal(drawn, rasterise([moved.reshape(-1)], height, width))
    # the exact area, of which sampled pixels miss more
    corners = moved.astype(np.float64)
    inside = Image.new("1", (width * 8, height * 8))
    ImageDraw.Draw(inside).polygon([tuple(8 * xy) for xy in corners], fill=1)
    exact = torch.from_numpy(np.array(inside)).float().reshape(height, 8, width, 8).mean((1, 3))
    sampled = sample.instances.masks[0][rows][:, columns]
    assert (drawn.float() - exact).abs().sum() < 0.5 * (sampled.float() - exact).abs().sum()


def test_what_has_no_polygon_keeps_its_sampled_mask(packed: Path) -> None:
    sample = PackedDataset(packed, "train")[1]
    assert sample.instances is not None
    rows, columns = torch.arange(80) // 2, torch.arange(120) // 2
    placed = Placement((2.0, 2.0), (0, 0))
    target = LargeScaleJitter(128).target(sample.instances, rows, columns, placed)
    assert torch.equal(target["masks"][0, :80, :120], sample.instances.masks[0][rows][:, columns])
