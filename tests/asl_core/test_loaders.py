"""Loaders: the same draws whatever makes them, every sample as often as it should be."""

import multiprocessing
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from asl_core.data.loaders import TrainingLoader, evaluation_batches
from asl_core.data.pretraining import collate_views, pretrain_transform
from asl_core.data.sampler import StepPlan
from asl_core.data.shards import PackedDataset
from asl_core.data.views import (
    LabelledBatch,
    collate_labelled,
    evaluation_transform,
    finetune_transform,
)
from asl_core.errors import InputError
from asl_core.protocol import Views
from asl_core.randomness import derive_seed, seeded_globals
from asl_core.recipes.views import View, ViewPlan

PLAN = ViewPlan(views=(View(size=16, scale=(0.3, 1.0)),))
BATCH, EPOCHS = 12, 3  # 40 images: 3 steps an epoch, 4 samples of each epoch dropped


def make_loader(folder: Path, **changes: Any) -> TrainingLoader[Views]:
    settings: dict[str, Any] = {"seed": 1, "batch_size": BATCH, "epochs": EPOCHS} | changes
    transform = pretrain_transform(PLAN)
    return TrainingLoader(PackedDataset(folder, "train"), transform, collate_views, **settings)


def steps(batches: Iterator[list[Views]]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return each step's images and indices, its micro-batches joined."""
    return [
        (torch.cat([b.views[0] for b in step]), torch.cat([b.indices for b in step]))
        for step in batches
    ]


def assert_same(mine: list, expected: list) -> None:
    assert len(mine) == len(expected)
    for (images, indices), (other_images, other_indices) in zip(mine, expected, strict=True):
        assert torch.equal(indices, other_indices)
        assert torch.equal(images, other_images)


@pytest.fixture(scope="module")
def expected(icons: Path) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return steps(make_loader(icons).iterate(0))


def test_steps_are_whole_batches(expected: list, icons: Path) -> None:
    loader = make_loader(icons)
    assert (loader.steps_per_epoch, loader.total_steps) == (3, 9)
    assert [len(indices) for _, indices in expected] == [BATCH] * 9


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_do_not_change_the_draws(icons: Path, expected: list, num_workers: int) -> None:
    assert_same(steps(make_loader(icons, num_workers=num_workers).iterate(0)), expected)


@pytest.mark.parametrize("micro_batch_size", [4, 5, 12, 99])
def test_micro_batches_do_not_change_the_draws(
    icons: Path, expected: list, micro_batch_size: int
) -> None:
    loader = make_loader(icons, micro_batch_size=micro_batch_size)
    assert_same(steps(loader.iterate(0)), expected)
    sizes = [len(batch.indices) for batch in next(loader.iterate(0))]
    assert max(sizes) == min(micro_batch_size, BATCH)


@pytest.mark.parametrize(("start", "num_workers"), [(1, 0), (3, 0), (8, 0), (9, 0), (4, 2)])
def test_a_resumed_loader_goes_on_as_the_first_would_have(
    icons: Path, expected: list, start: int, num_workers: int
) -> None:
    loader = make_loader(icons, num_workers=num_workers, micro_batch_size=5)
    assert_same(steps(loader.iterate(start)), expected[start:])


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_out_the_same_batch(icons: Path, expected: list, world_size: int) -> None:
    ranks = [
        steps(make_loader(icons, rank=rank, world_size=world_size).iterate(0))
        for rank in range(world_size)
    ]
    joined = [
        (torch.cat([images for images, _ in parts]), torch.cat([indices for _, indices in parts]))
        for parts in zip(*ranks, strict=True)
    ]
    assert_same(joined, expected)


def test_a_sample_is_augmented_under_the_seed_of_its_epoch_and_index(
    icons: Path, expected: list
) -> None:
    images, indices = expected[4]  # the second step of epoch 1
    dataset, transform = PackedDataset(icons, "train"), pretrain_transform(PLAN)
    for image, index in zip(images, indices.tolist(), strict=True):
        with seeded_globals(derive_seed(1, "augment", 1, index)):
            assert torch.equal(transform(dataset[index]).views[0], image)


def test_the_seed_changes_order_and_augmentation(icons: Path, expected: list) -> None:
    other = steps(make_loader(icons, seed=2).iterate(0))
    assert not torch.equal(other[0][1], expected[0][1])


def test_epochs_differ_in_order_and_in_crops(expected: list) -> None:
    first, second = expected[0:3], expected[3:6]
    orders = [torch.cat([indices for _, indices in epoch]) for epoch in (first, second)]
    assert not torch.equal(*orders)
    pictures = [
        {
            int(index): image
            for images, indices in epoch
            for image, index in zip(images, indices, strict=True)
        }
        for epoch in (first, second)
    ]
    common = pictures[0].keys() & pictures[1].keys()
    assert common
    assert all(not torch.equal(pictures[0][index], pictures[1][index]) for index in common)


def test_no_sample_comes_twice_in_an_epoch(expected: list) -> None:
    for epoch in range(EPOCHS):
        indices = torch.cat([indices for _, indices in expected[3 * epoch : 3 * epoch + 3]])
        assert len(indices.unique()) == 3 * BATCH


def test_skipped_steps_read_no_sample() -> None:
    class Counting:
        def __init__(self) -> None:
            self.reads: list[int] = []

        def __len__(self) -> int:
            return 1000

        def __getitem__(self, index: int) -> int:
            self.reads.append(index)
            return index

    dataset = Counting()
    loader = TrainingLoader(dataset, int, list, seed=0, batch_size=10, epochs=50)
    assert len(next(loader.iterate(4321))[0]) == 10
    assert len(dataset.reads) == 10


def test_a_subset_trains_on_its_members_only(icons: Path) -> None:
    loader = make_loader(icons, subset=[3, 5, 7, 11], batch_size=2)
    seen = Counter(int(i) for _, indices in steps(loader.iterate(0)) for i in indices)
    assert seen == {3: EPOCHS, 5: EPOCHS, 7: EPOCHS, 11: EPOCHS}


def test_library_augmentations_do_not_depend_on_workers_either(icons: Path) -> None:
    def run(num_workers: int) -> torch.Tensor:
        loader = TrainingLoader(
            PackedDataset(icons, "train"),
            finetune_transform(16, random_erasing=0.5),
            collate_labelled,
            seed=0,
            batch_size=8,
            epochs=1,
            num_workers=num_workers,
        )
        return torch.cat([step[0].images for step in loader.iterate(0)])

    assert torch.equal(run(0), run(2))


def test_loading_leaves_the_global_generators_alone(icons: Path) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    for num_workers in (0, 1):
        next(make_loader(icons, num_workers=num_workers).iterate(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_without_workers_there_is_no_other_process(icons: Path) -> None:
    others = set(multiprocessing.active_children())  # workers that another test left to end
    next(make_loader(icons, num_workers=0).iterate(0))
    assert set(multiprocessing.active_children()) <= others


def test_a_batch_larger_than_the_data_is_refused(icons: Path) -> None:
    with pytest.raises(InputError, match="batch_size 41 is larger than the training set of 40"):
        make_loader(icons, batch_size=41)


def test_a_batch_that_does_not_split_is_refused(icons: Path) -> None:
    with pytest.raises(InputError, match="batch_size 12 does not split evenly over 5 processes"):
        make_loader(icons, world_size=5)


def test_a_plan_of_a_million_images_starts_at_its_last_step_at_once() -> None:
    plan = StepPlan(range(1_281_167), seed=0, batch_size=4096, epochs=1600)
    assert plan.total_steps == 1600 * 312
    assert len(next(plan.micro_batches(plan.total_steps - 1))) == 4096


@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 0), (3, 0), (2, 1)])
def test_evaluation_sees_every_sample_once(icons: Path, world_size: int, num_workers: int) -> None:
    batches = [
        batch
        for rank in range(world_size)
        for batch in evaluation(icons, rank=rank, world_size=world_size, num_workers=num_workers)
    ]
    assert sorted(torch.cat([batch.indices for batch in batches]).tolist()) == list(range(16))
    labels = PackedDataset(icons, "test").labels
    for batch in batches:
        assert batch.labels.tolist() == labels[batch.indices.numpy()].tolist()


def test_evaluation_of_a_subset_keeps_its_order(icons: Path) -> None:
    batches = list(evaluation(icons, subset=[9, 2, 4, 15, 0, 1]))
    assert [batch.indices.tolist() for batch in batches] == [[9, 2, 4, 15, 0], [1]]


def evaluation(folder: Path, **changes: Any) -> Iterator[LabelledBatch]:
    settings: dict[str, Any] = {"batch_size": 5} | changes
    dataset = PackedDataset(folder, "test")
    return evaluation_batches(dataset, evaluation_transform(16), collate_labelled, **settings)
