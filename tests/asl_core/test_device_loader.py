"""Images on the device: crops bit for bit NumPy's and close to torchvision's; order; refusals."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy_crops
import pytest
import torch
import torchvision.transforms.v2.functional as F
from miniatures import ASL, MAE, OTHERS, SHORT
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import InterpolationMode

from asl_core.data.batched_resize import BoxResizer, resize_weights
from asl_core.data.device_images import DeviceImages, load_on_device
from asl_core.data.device_loader import DeviceLoader
from asl_core.data.loaders import TrainingLoader
from asl_core.data.prepare import prepare
from asl_core.data.pretraining import collate_views, pretrain_transform
from asl_core.data.random_boxes import draw_boxes
from asl_core.data.sampler import StepPlan
from asl_core.data.shards import PackedDataset
from asl_core.engine.context import RunContext
from asl_core.engine.journal import Journal
from asl_core.errors import InputError
from asl_core.pretrain import pretrain
from asl_core.protocol import Views
from asl_core.randomness import derive_seed, seeded_globals
from asl_core.recipes.datasets import ImageFolder
from asl_core.recipes.optimisation import Resources
from asl_core.recipes.supervised import SupervisedRecipe
from asl_core.recipes.views import View, ViewPlan

CPU = torch.device("cpu")
PLAN = ViewPlan(views=(View(size=12, scale=(0.3, 1.0)),), labels=True)
SIZES = [((16, 16), 16), ((20, 28), 12), ((9, 8), 24), ((40, 12), 16)]
"""Sizes of images, and of the squares made of them: as large, smaller, larger, both."""


def pictures(count: int, size: tuple[int, int]) -> torch.Tensor:
    """Noise, with parts that are black and white: bicubic overshoots there; (N, H, 3, W)."""
    generator = torch.Generator().manual_seed(count)
    noise = torch.randint(0, 256, (count, size[0], 3, size[1]), generator=generator)
    coarse = torch.rand((count, size[0], 3, size[1]), generator=generator)
    return torch.where(coarse < 0.3, 0, torch.where(coarse > 0.7, 255, noise)).byte()


def make_loader(folder: Path, **changes: Any) -> DeviceLoader:
    dataset = PackedDataset(folder, "train")
    settings: dict[str, Any] = {"seed": 1, "batch_size": 12, "epochs": 3} | changes
    plan = StepPlan(indices=range(len(dataset)), **settings)
    return DeviceLoader(load_on_device(dataset, CPU), plan, PLAN)


def joined(batches: Iterator[list[Views]]) -> list[tuple[torch.Tensor, ...]]:
    """Return each step's images, labels and indices, its micro-batches joined."""
    steps = []
    for step in batches:
        labels = [b.labels for b in step if b.labels is not None]
        images, indices = [b.views[0] for b in step], [b.indices for b in step]
        steps.append((torch.cat(images), torch.cat(labels), torch.cat(indices)))
    return steps


def assert_same(mine: list, expected: list) -> None:
    assert len(mine) == len(expected)
    for ours, theirs in zip(mine, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.fixture(scope="module")
def expected(icons: Path) -> list[tuple[torch.Tensor, ...]]:
    return joined(make_loader(icons).iterate(0))


@pytest.mark.parametrize(("size", "side"), SIZES)
def test_crops_are_those_of_numpy_bit_for_bit(size: tuple[int, int], side: int) -> None:
    images, indices = pictures(64, size), torch.arange(1000, 1064)
    boxes = draw_boxes(77, indices, size, (0.2, 1.0), True)
    squares = BoxResizer(size, side, CPU)(images, boxes)
    for i, index in enumerate(indices.tolist()):
        part = numpy_crops.box(77, index, size, (0.2, 1.0), True)
        assert part == tuple(int(values[i]) for values in boxes)
        image = images[i].transpose(0, 1).numpy()
        np.testing.assert_array_equal(numpy_crops.crop(image, part, side), squares[i].numpy())


@pytest.mark.parametrize(("size", "side"), SIZES)
def test_crops_are_those_of_torchvision_but_for_rounding(size: tuple[int, int], side: int) -> None:
    images = pictures(64, size)
    boxes = draw_boxes(5, torch.arange(64), size, (0.2, 1.0), True)
    squares = BoxResizer(size, side, CPU)(images, boxes)
    theirs = []
    for image, top, left, height, width, flipped in zip(images, *boxes, strict=True):
        part = F.resized_crop(
            image.transpose(0, 1), int(top), int(left), int(height), int(width), [side, side],
            InterpolationMode.BICUBIC, antialias=True,
        )  # fmt: skip
        theirs.append(F.horizontal_flip(part) if flipped else part)
    difference = (squares.int() - torch.stack(theirs).int()).abs()
    # theirs has weights of 2^-14 and less: a level up or down where a sum is close to a half
    assert difference.max() <= 2
    assert difference.float().mean() < 0.01


@pytest.mark.parametrize(("length", "side"), [(96, 32), (32, 96), (7, 3), (1, 5), (64, 64)])
def test_every_sum_of_weights_and_pixels_is_exact_in_float32(length: int, side: int) -> None:
    weights = resize_weights(length, side) * 2**15
    assert torch.equal(weights, weights.round())
    assert (weights.abs().sum(-1) * 255).max() < 2**24
    assert (weights.sum(-1) - 2**15).abs().max() <= length / 2


def test_a_whole_image_of_the_right_size_stays_as_it_is() -> None:
    images = pictures(3, (8, 8))
    boxes = draw_boxes(0, torch.arange(3), (8, 8), (1.0, 1.0), False)
    whole = boxes._replace(
        top=boxes.top * 0, left=boxes.left * 0,
        height=torch.full_like(boxes.height, 8), width=torch.full_like(boxes.width, 8),
    )  # fmt: skip
    assert torch.equal(BoxResizer((8, 8), 8, CPU)(images, whole), images.transpose(1, 2))


def test_boxes_are_distributed_as_those_of_torchvision() -> None:
    count, size, scale = 4000, (30, 40), (0.2, 1.0)
    drawn = torch.stack(draw_boxes(3, torch.arange(count), size, scale, True)[:4]).double()
    with seeded_globals(0):
        blank = torch.zeros(3, *size)
        params = [
            RandomResizedCrop.get_params(blank, list(scale), [3 / 4, 4 / 3]) for _ in range(count)
        ]
    theirs = torch.tensor(params, dtype=torch.float64).T
    errors = (theirs.var(1) / count + drawn.var(1) / count).sqrt()
    assert ((drawn.mean(1) - theirs.mean(1)).abs() < 4 * errors).all()
    assert (drawn.std(1) / theirs.std(1) - 1).abs().max() < 0.05


@pytest.mark.parametrize("size", [(4, 60), (60, 4)])
def test_where_no_try_fits_the_middle_is_taken(size: tuple[int, int]) -> None:
    boxes = draw_boxes(0, torch.arange(5), size, (1.0, 1.0), False)
    expected = RandomResizedCrop.get_params(torch.zeros(3, *size), [1.0, 1.0], [3 / 4, 4 / 3])
    for values in zip(*boxes[:4], strict=True):
        assert [int(value) for value in values] == list(expected)


def test_flips_are_half_or_none() -> None:
    def flipped(flip: bool) -> int:
        boxes = draw_boxes(1, torch.arange(1000), (8, 8), (0.2, 1.0), flip)
        return int(boxes.flipped.sum())

    assert 440 < flipped(True) < 560
    assert flipped(False) == 0


def test_the_samples_of_a_step_are_those_of_the_loader(expected: list, icons: Path) -> None:
    dataset, transform = PackedDataset(icons, "train"), pretrain_transform(PLAN)
    theirs = TrainingLoader(
        dataset, transform, collate_views, seed=1, batch_size=12, epochs=3, micro_batch_size=5
    )
    ours = make_loader(icons)
    assert (ours.steps_per_epoch, ours.total_steps) == (3, 9)
    for (_, labels, indices), (_, their_labels, their_indices) in zip(
        expected, joined(theirs.iterate(0)), strict=True
    ):
        assert torch.equal(indices, their_indices)
        assert torch.equal(labels, their_labels)


def test_an_image_is_drawn_by_seed_epoch_and_index(expected: list, icons: Path) -> None:
    dataset = PackedDataset(icons, "train")
    images, _, indices = expected[4]  # the second step of epoch 1
    seed = derive_seed(1, "augment", 1)
    for image, index in zip(images, indices.tolist(), strict=True):
        part = numpy_crops.box(seed, index, (16, 16), (0.3, 1.0), True)
        original = dataset.read_image(index).numpy()
        np.testing.assert_array_equal(numpy_crops.crop(original, part, 12), image.numpy())


@pytest.mark.parametrize("micro_batch_size", [5, 12, 99])
@pytest.mark.parametrize("start", [0, 4, 9])
def test_neither_micro_batches_nor_a_resume_change_anything(
    icons: Path, expected: list, micro_batch_size: int, start: int
) -> None:
    loader = make_loader(icons, micro_batch_size=micro_batch_size)
    assert_same(joined(loader.iterate(start)), expected[start:])


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_out_the_same_batch(icons: Path, expected: list, world_size: int) -> None:
    ranks = [
        joined(make_loader(icons, rank=rank, world_size=world_size).iterate(0))
        for rank in range(world_size)
    ]
    together = [
        tuple(torch.cat(parts) for parts in zip(*step, strict=True))
        for step in zip(*ranks, strict=True)
    ]
    assert_same(together, expected)


def test_images_that_are_too_many_for_the_memory_are_refused(icons: Path) -> None:
    dataset, needed = PackedDataset(icons, "train"), 40 * 16 * 16 * 3
    images: DeviceImages = load_on_device(dataset, CPU, free_bytes=4 * needed)
    assert (len(images), images.image_size) == (40, (16, 16))
    with pytest.raises(InputError, match=r"the 40 images of icons, 16 x 16 pixels, take .* a quar"):
        load_on_device(dataset, CPU, free_bytes=4 * needed - 1)


def test_images_of_different_sizes_are_refused(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for number, size in enumerate([(20, 16), (16, 16)]):
            folder = tmp_path / "raw" / split / "one"
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", size, (number, 0, 0)).save(folder / f"{number}.png")
    recipe = ImageFolder(path=str(tmp_path / "raw"))
    prepare(recipe, tmp_path, tmp_path / "packed", name="folder")
    dataset = PackedDataset(tmp_path / "packed", "train")
    with pytest.raises(InputError, match="of folder has 2, from 16 x 16 pixels to 16 x 20 pixels"):
        load_on_device(dataset, CPU)


@pytest.mark.parametrize(
    ("method", "wanted"),
    {
        "cmae": "2 views of each image, a window",
        "sim": "2 views of each image, colour",
        "dino": "4 views of each image, colour",
        "ibot": "2 views of each image, colour, a mask of blocks",
        "mocov3": "2 views of each image, bilinear resizing, colour",
        "rmae": "regions",
        "supervised": "rand_augment, random_erasing",
    }.items(),
)
def test_views_that_the_device_does_not_make_are_refused(method: str, wanted: str) -> None:
    with pytest.raises(ValueError, match=f"one view, a crop and a flip; {method} wants {wanted}"):
        dataclasses.replace(OTHERS[method], images_on="device")


ATEN = torch.ops.aten
WAITING = (ATEN._local_scalar_dense, ATEN.nonzero, ATEN.masked_select)
"""What makes a CPU wait for its GPU: a number is read, or a size depends on values."""


class Waits(TorchDispatchMode):
    """Counts calls of what waits."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket in WAITING
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("recipe", [MAE, ASL], ids=["mae", "asl"])
def test_nothing_is_waited_for_between_log_lines(recipe: Any, icons: Path, tmp_path: Path) -> None:
    counts = []
    for epochs in (3, 5):  # 15 or 25 steps; one log line, witnesses after three steps
        with Journal.open(tmp_path / f"journal-{epochs}") as journal, Waits() as waits:
            resources = Resources(device="cpu", log_every_steps=1000)
            context = RunContext(tmp_path / f"ckpt-{epochs}", journal, resources)
            changed = dataclasses.replace(
                recipe, images_on="device", epochs=epochs, clip_grad=1.0, precision="fp32"
            )
            pretrain(changed, icons, context)
        counts.append(waits.count)
    assert counts[0] == counts[1]
    assert counts[0] > 0  # the log line itself reads


def test_a_method_with_classes_sees_them(icons: Path, tmp_path: Path) -> None:
    recipe = SupervisedRecipe(
        **SHORT, images_on="device", rand_augment=None, random_erasing=0.0, mixup=0.0, cutmix=0.0
    )
    with Journal.open(tmp_path / "journal") as journal:
        context = RunContext(tmp_path / "ckpt", journal, Resources(device="cpu"))
        pretrain(recipe, icons, context)
