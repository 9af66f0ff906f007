"""Batches for training and evaluation, the same ones however many processes make them."""

import dataclasses
import random
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from asl_core.data.sampler import Draw, StepPlan
from asl_core.randomness import derive_seed, seeded_globals

Batch = TypeVar("Batch")
Indices = list[int]


class Readable(Protocol):
    """A dataset that can be read at any position."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class TrainingLoader(Generic[Batch]):
    """Gives the augmented micro-batches of every optimiser step.

    The order of an epoch depends on (seed, epoch), an augmentation on (seed, epoch, index);
    neither on the number of workers, the micro-batch, the number of processes or the step at
    which a run resumes.

    Args:
        dataset: The training split.
        transform: Sample -> item; its draws from the global generators are seeded per sample.
        collate: List of items -> batch.
        seed: Of orders and augmentations.
        batch_size: Samples per step over all processes and micro-batches.
        epochs: How often the data are gone through.
        micro_batch_size: Samples per forward pass; None: this process's part of the batch.
        num_workers: Loader processes; 0: this process does the work.
        rank: This process.
        world_size: Number of processes.
        subset: Positions that take part; None: all.

    Raises:
        InputError: batch_size exceeds the data, or does not split evenly over the processes.
    """

    def __init__(
        self,
        dataset: Readable,
        transform: Callable[[Any], Any],
        collate: Callable[[list[Any]], Batch],
        *,
        seed: int,
        batch_size: int,
        epochs: int,
        micro_batch_size: int | None = None,
        num_workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
        subset: Sequence[int] | None = None,
    ) -> None:
        self._plan = StepPlan(
            indices=range(len(dataset)) if subset is None else subset,
            seed=seed,
            batch_size=batch_size,
            epochs=epochs,
            rank=rank,
            world_size=world_size,
            micro_batch_size=micro_batch_size,
        )
        self._augmented = _Augmented(dataset, transform, seed)
        self._collate = collate
        self._num_workers = num_workers
        self.steps_per_epoch = self._plan.steps_per_epoch
        self.total_steps = self._plan.total_steps

    def iterate(self, start_step: int) -> Iterator[list[Batch]]:
        """Yield, for each step from `start_step` to the last, this process's micro-batches."""
        batches = _load(
            self._augmented,
            _MicroBatches(self._plan, start_step),
            self._collate,
            self._num_workers,
        )
        for _ in range(start_step, self.total_steps):
            yield list(islice(batches, self._plan.micro_batches_per_step))


def evaluation_batches(
    dataset: Readable,
    transform: Callable[[Any], Any],
    collate: Callable[[list[Any]], Batch],
    *,
    batch_size: int,
    num_workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    subset: Sequence[int] | None = None,
) -> Iterator[Batch]:
    """Yield every sample exactly once over all processes, in order; the last batch may be small.

    Args: as for `TrainingLoader`; `batch_size` is that of this process.
    """
    indices = range(len(dataset)) if subset is None else subset
    own = [indices[position] for position in range(rank, len(indices), world_size)]
    batches = [own[first : first + batch_size] for first in range(0, len(own), batch_size)]
    return _load(_Transformed(dataset, transform), batches, collate, num_workers)


@dataclasses.dataclass
class _MicroBatches:
    """The plan from one step on, as a `batch_sampler`."""

    plan: StepPlan
    start_step: int

    def __iter__(self) -> Iterator[list[Draw]]:
        return self.plan.micro_batches(self.start_step)

    def __len__(self) -> int:
        steps = max(self.plan.total_steps - self.start_step, 0)
        return steps * self.plan.micro_batches_per_step


@dataclasses.dataclass
class _Augmented(Dataset[Any]):
    """Samples by (epoch, index), transformed with the draws that belong to them."""

    dataset: Readable
    transform: Callable[[Any], Any]
    seed: int

    def __getitems__(self, draws: list[Draw]) -> list[Any]:
        """Return a batch's items; DataLoader asks for them at once."""
        # saved and restored once for all: that takes longer than to crop a small image
        with seeded_globals(self.seed):
            return [self._draw(epoch, index) for epoch, index in draws]

    def _draw(self, epoch: int, index: int) -> Any:
        sample = self.dataset[index]
        _seed_globals(derive_seed(self.seed, "augment", epoch, index))
        return self.transform(sample)


def _seed_globals(seed: int) -> None:
    """Seed the generators that library code draws from, as `seeded_globals` does."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)


@dataclasses.dataclass
class _Transformed(Dataset[Any]):
    """Samples by index, transformed."""

    dataset: Readable
    transform: Callable[[Any], Any]

    def __getitem__(self, index: int) -> Any:
        return self.transform(self.dataset[index])


def _load(
    dataset: Dataset[Any],
    batches: "_MicroBatches | list[Indices]",
    collate: Callable[[list[Any]], Batch],
    num_workers: int,
) -> Iterator[Batch]:
    """Yield the collated batches in order, pinned where there is a GPU to send them to."""
    loader = DataLoader(
        dataset,
        batch_sampler=batches,  # type: ignore[arg-type]  # any sized iterable of lists will do
        collate_fn=_Parcels(collate),
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_use_one_thread,
        # Otherwise DataLoader draws from the global generator, and the number of iterators
        # that a run has started would show in its results.
        generator=torch.Generator().manual_seed(0),
    )
    for parcel in loader:
        yield parcel.batch


def _use_one_thread(worker: int) -> None:
    """Keep a worker to its core: OpenMP's threads spin while they wait."""
    torch.set_num_threads(1)


@dataclasses.dataclass
class _Parcel:
    """A batch on its way; DataLoader pins what has this method, but looks into no dataclass."""

    batch: Any

    def pin_memory(self) -> "_Parcel":
        return _Parcel(_pinned(self.batch))


@dataclasses.dataclass
class _Parcels:
    """Collates into parcels."""

    collate: Callable[[list[Any]], Any]

    def __call__(self, items: list[Any]) -> _Parcel:
        return _Parcel(self.collate(items))


def _pinned(batch: Any) -> Any:
    """Pin every tensor in tuples, lists, mappings and dataclasses."""
    if isinstance(batch, Tensor):
        return batch.pin_memory()
    if isinstance(batch, dict):
        return {key: _pinned(value) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_pinned(value) for value in batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(_pinned(value) for value in batch)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        names = [each.name for each in dataclasses.fields(batch)]
        return dataclasses.replace(batch, **{n: _pinned(getattr(batch, n)) for n in names})
    return batch
