"""Maps of regions: packed beside images that stay what they are, cropped with them, drawn from."""

# pyright: reportOptionalMemberAccess=false, reportArgumentType=false

import dataclasses
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from skimage.segmentation import felzenszwalb
from torch import Tensor

from asl_core.data.loaders import TrainingLoader
from asl_core.data.manifest import read_manifest
from asl_core.data.prepare import prepare
from asl_core.data.pretraining import collate_views, pretrain_transform
from asl_core.data.region_maps import decode_maps, draw_regions, encode_maps
from asl_core.data.samples import Sample
from asl_core.data.shards import PackedDataset
from asl_core.errors import InputError
from asl_core.randomness import seeded_globals
from asl_core.recipes.datasets import Icons, Regions, Scenes, Union_
from asl_core.recipes.views import View, ViewPlan

PLAIN = Scenes(image_size=24, train=7, test=3)
RECIPE = dataclasses.replace(PLAIN, regions=Regions(scales=(6, 20), sigma=0.5))
MAPS = ("train-regions.npz", "train-regions.zlib")


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("regions") / "scenes"
    prepare(RECIPE, folder, folder, name="scenes")
    return folder


def test_images_are_packed_to_the_byte_as_without_regions(packed: Path, tmp_path: Path) -> None:
    prepare(PLAIN, tmp_path, tmp_path, name="scenes")
    without, beside = ({p.name for p in folder.iterdir()} for folder in (tmp_path, packed))
    assert beside == without | set(MAPS)
    for name in without - {"manifest.json"}:
        assert (packed / name).read_bytes() == (tmp_path / name).read_bytes()
    plain, found = (json.loads((f / "manifest.json").read_text()) for f in (tmp_path, packed))
    assert found["source"].pop("regions") == {"scales": [6, 20], "sigma": 0.5}
    assert found == plain  # which has no key `regions`, as before there were any
    assert plain["source"] == {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in dataclasses.asdict(PLAIN).items() if key != "regions"
    }  # fmt: skip


def test_packing_again_gives_equal_bytes_and_packing_without_removes_the_maps(
    packed: Path, tmp_path: Path
) -> None:
    prepare(RECIPE, tmp_path, tmp_path, name="scenes")
    for name in MAPS:
        assert (tmp_path / name).read_bytes() == (packed / name).read_bytes()
    prepare(PLAIN, tmp_path, tmp_path, name="scenes")
    assert not any((tmp_path / name).exists() for name in MAPS)


def test_maps_are_those_of_scikit_image_read_where_they_are_asked_for(packed: Path) -> None:
    dataset, unasked = PackedDataset(packed, "train", regions=True), PackedDataset(packed, "train")
    for index in (5, 0, 6):
        sample = dataset[index]
        pixels = sample.image.permute(1, 2, 0).numpy()
        for each, scale in zip(sample.regions, (6, 20), strict=True):
            expected = felzenszwalb(pixels, scale=scale, sigma=0.5, min_size=scale)
            assert np.array_equal(each.numpy(), expected)
            assert each.unique(return_counts=True)[1].min() >= scale
        assert unasked[index].regions is None
    assert PackedDataset(packed, "test", regions=True)[0].regions is None


@pytest.mark.parametrize(("most", "dtype"), [(3, "uint8"), (256, "uint16"), (70000, "uint32")])
def test_more_than_256_segments_stay_apart(most: int, dtype: str) -> None:
    maps = np.arange(2 * 3 * 5).reshape(2, 3, 5) % 7
    maps[1, 2, 4] = most
    maps = maps.astype(np.min_scalar_type(maps.max()) if most > 255 else np.uint8)
    assert maps.dtype == dtype
    back = decode_maps(encode_maps(maps), 2, 3, 5)
    assert np.array_equal(back.numpy(), maps)
    assert back.dtype == (torch.uint8 if most < 256 else torch.int32)


def test_the_maps_of_a_union_are_those_of_its_members(packed: Path, tmp_path: Path) -> None:
    union = Union_(members=(Icons(image_size=16, train=3, test=2), PLAIN), regions=RECIPE.regions)
    prepare(union, tmp_path, tmp_path, name="both")
    both = PackedDataset(tmp_path, "train", regions=True)
    ours = PackedDataset(packed, "train", regions=True)
    assert both[0].regions.shape == (2, 16, 16)
    assert torch.equal(both[3 + 2].regions, ours[2].regions)
    source = read_manifest(tmp_path).source
    assert "regions" in source
    assert not any("regions" in member for member in source["members"])


def a_sample(seed: int = 0, dtype: torch.dtype = torch.int32) -> Sample:
    """Two maps of 5 and of 300 segments, numbered without an order."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (3, 22, 31), dtype=torch.uint8, generator=generator)
    maps = torch.stack([torch.randint(0, most, (22, 31), generator=generator) for most in (5, 300)])
    return Sample(0, 0, image, regions=maps.to(dtype))


def nearest(each: Tensor, box: Tensor, side: int) -> Tensor:
    """A crop of a map, each pixel that of the map where its upper left corner falls."""
    top, left, height, width, mirrored, image_width = (int(number) for number in box)
    if mirrored:
        left = image_width - left - width
    rows = [top + math.floor(i * height / side) for i in range(side)]
    columns = [left + math.floor(j * width / side) for j in range(side)]
    crop = torch.tensor([[int(each[r, c]) for c in columns] for r in rows])
    return crop.flip(1) if mirrored else crop


def test_regions_are_segments_of_all_maps_in_the_crop_of_the_first_view() -> None:
    sample, mirrored = a_sample(), set()
    views = (View(size=16, scale=(0.3, 1.0)), View(size=8))
    for seed in range(12):
        with seeded_globals(seed):
            plan = ViewPlan(views=views, boxes=True, regions=9)
            item = pretrain_transform(plan)(sample)
        assert item.regions.dtype == torch.bool
        crops = [nearest(each, item.boxes[0], 16) for each in sample.regions]
        segments = [crop == number for crop in crops for number in crop.unique()]
        found = [
            next(i for i, segment in enumerate(segments) if torch.equal(segment, region))
            for region in item.regions
        ]
        assert len(set(found)) == 9  # none twice: there are more
        mirrored.add(bool(item.boxes[0, 4]))
        with seeded_globals(seed):
            alone = pretrain_transform(ViewPlan(views=views, boxes=True))(sample)
        assert alone.regions is None  # and nothing else is another draw
        assert torch.equal(alone.boxes, item.boxes)
        for view, other in zip(item.views, alone.views, strict=True):
            assert torch.equal(view, other)
    assert mirrored == {True, False}


def test_a_region_covers_what_it_covers_in_the_picture() -> None:
    bright = torch.zeros(40, 50, dtype=torch.uint8)
    bright[5:30, 8:24] = 1
    sample = Sample(0, 0, (200 * bright).expand(3, -1, -1), regions=bright[None])
    transform = pretrain_transform(ViewPlan(views=(View(size=24, scale=(0.5, 1.0)),), regions=2))
    for seed in range(20):
        with seeded_globals(seed):
            item = transform(sample)
        seen = item.views[0][0] > 100
        for region in item.regions:
            agree = (region == seen).float().mean()
            assert max(agree, 1 - agree) > 0.9


@pytest.mark.parametrize(
    ("segments", "count", "times"),
    [(3, 8, [2, 3, 3]), (2, 8, [4, 4]), (1, 3, [3]), (4, 4, [1] * 4)],
)
def test_fewer_segments_than_asked_for_are_repeated_evenly(
    segments: int, count: int, times: list[int]
) -> None:
    maps = (torch.arange(20) % segments).reshape(1, 4, 5)
    with seeded_globals(1):
        regions = draw_regions(maps, count)
    numbers = Counter(int(maps[0][region].unique()) for region in regions)
    assert sorted(numbers.values()) == times


def test_every_segment_is_drawn_as_often_as_any_other() -> None:
    maps = torch.stack([torch.arange(12).reshape(3, 4) % 5, torch.arange(12).reshape(3, 4) % 3])
    drawn: Counter[tuple[bool, ...]] = Counter()
    with seeded_globals(0):
        for _ in range(400):
            drawn.update(tuple(region.flatten().tolist()) for region in draw_regions(maps, 2))
    assert len(drawn) == 8
    assert all(65 < times < 135 for times in drawn.values())  # 100, deviation 9


@pytest.mark.parametrize("num_workers", [1, 2])
def test_regions_are_the_same_for_any_number_of_workers(icons: Path, num_workers: int) -> None:
    def batches(workers: int) -> list[Any]:
        loader = TrainingLoader(
            PackedDataset(icons, "train", regions=True),
            pretrain_transform(ViewPlan(views=(View(size=16),), regions=3)), collate_views,
            seed=1, batch_size=12, epochs=1, micro_batch_size=5, num_workers=workers,
        )  # fmt: skip
        return [batch for step in loader.iterate(1) for batch in step]

    for ours, expected in zip(batches(num_workers), batches(0), strict=True):
        assert ours.regions.shape[1:] == (3, 16, 16)
        assert torch.equal(ours.regions, expected.regions)
        assert torch.equal(ours.views[0], expected.views[0])


@pytest.mark.parametrize("name", MAPS)
def test_damaged_maps_are_one_line_that_names_the_file(
    packed: Path, tmp_path: Path, name: str
) -> None:
    for path in packed.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    content = bytearray((packed / name).read_bytes())
    content[10:40] = bytes(30)
    for damaged, message in ((bytes(content), "is damaged"), (bytes(content[:5]), name)):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(InputError, match=message) as raised:
            PackedDataset(tmp_path, "train", regions=True)[0]
        assert name in str(raised.value)
        assert "prepare the dataset again" in str(raised.value)
        assert "\n" not in str(raised.value)
    PackedDataset(tmp_path, "train")[0]  # nobody else reads them


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Regions(scales=()), r"scales must be one or more .* from 1, got \[\]"),
        (lambda: Regions(scales=(500, 0)), r"from 1, got \[500, 0\]"),
        (lambda: Regions(scales=(500,), sigma=-0.1), "sigma must be from 0 to 20 pixels, got -0.1"),
        (lambda: Union_(members=(RECIPE,)), "regions of a member have no effect"),
    ],
)
def test_values_that_make_no_sense_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        make()
    assert "\n" not in str(raised.value)
