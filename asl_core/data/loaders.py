"""Batches for training and evaluation, the same ones however many processes make them."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from asl_core.data.loader_errors import check_shared_memory, loader_errors, no_room
from asl_core.data.sampler import Draw, StepPlan
from asl_core.errors import InputError
from asl_core.randomness import derive_seed, seed_globals, seeded_globals

Batch = TypeVar("Batch")
Item = TypeVar("Item")
Record = TypeVar("Record")
Record_co = TypeVar("Record_co", covariant=True)
Indices = list[int]


class Readable(Protocol[Record_co]):
    """A dataset that can be read at any position."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Record_co: ...


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
        dataset: Readable[Record],
        transform: Callable[[Record], Item],
        collate: Callable[[list[Item]], Batch],
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
    dataset: Readable[Record],
    transform: Callable[[Record], Item],
    collate: Callable[[list[Item]], Batch],
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
class _Augmented(Dataset[Item], Generic[Record, Item]):
    """Samples by (epoch, index), transformed with the draws that belong to them."""

    dataset: Readable[Record]
    transform: Callable[[Record], Item]
    seed: int

    def __getitems__(self, draws: list[Draw]) -> list[Item]:
        """Return a batch's items; DataLoader asks for them at once."""
        # saved and restored once for all: that takes longer than to crop a small image
        with seeded_globals(self.seed):
            return [self._draw(epoch, index) for epoch, index in draws]

    def _draw(self, epoch: int, index: int) -> Item:
        sample = self.dataset[index]
        seed_globals(derive_seed(self.seed, "augment", epoch, index))
        return self.transform(sample)


@dataclasses.dataclass
class _Transformed(Dataset[Item], Generic[Record, Item]):
    """Samples by index, transformed."""

    dataset: Readable[Record]
    transform: Callable[[Record], Item]

    def __getitem__(self, index: int) -> Item:
        return self.transform(self.dataset[index])


def _load(
    dataset: Dataset[Item],
    batches: "_MicroBatches | list[Indices]",
    collate: Callable[[list[Item]], Batch],
    num_workers: int,
) -> Iterator[Batch]:
    """Yield the collated batches in order, pinned where there is a GPU to send them to.

    Raises:
        InputError: What a loader process said is wrong; or there is too little shared memory.
        TrainingError: A loader process was killed.
    """
    if num_workers:
        check_shared_memory(num_workers)
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
    with loader_errors(num_workers):
        for parcel in loader:
            yield parcel.unpacked()


def _use_one_thread(worker: int) -> None:
    """Keep a worker to its core: OpenMP's threads spin while they wait."""
    torch.set_num_threads(1)


@dataclasses.dataclass
class _Parcel(Generic[Batch]):
    """A batch on its way; DataLoader pins what has this method, but looks into no dataclass."""

    batch: Batch | None
    problem: str = ""

    def pin_memory(self) -> "_Parcel[Batch]":
        pinned = None if self.batch is None else map_tensors(self.batch, Tensor.pin_memory)
        return _Parcel(pinned, self.problem)

    def unpacked(self) -> Batch:
        """Return the batch.

        Raises:
            InputError: It found no room on its way.
        """
        if self.batch is None:
            raise InputError(self.problem)
        return self.batch


@dataclasses.dataclass
class _Parcels(Generic[Item, Batch]):
    """Collates into parcels."""

    collate: Callable[[list[Item]], Batch]

    def __call__(self, items: list[Item]) -> _Parcel[Batch]:
        batch = self.collate(items)
        if get_worker_info() is not None:
            # here and not when it is sent: where that fails, the others would wait for ever
            try:
                batch = map_tensors(batch, Tensor.share_memory_)
            except RuntimeError as error:
                return _Parcel(None, no_room(error))
        return _Parcel(batch)


def map_tensors(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    """Return a batch with every tensor changed in tuples, lists, mappings and dataclasses."""
    return _mapped(batch, change)


def _mapped(part: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(part, Tensor):
        return change(part)
    if isinstance(part, dict):
        return {key: _mapped(value, change) for key, value in part.items()}
    if isinstance(part, tuple) and hasattr(part, "_fields"):
        return type(part)(*(_mapped(value, change) for value in part))
    if isinstance(part, (list, tuple)):
        return type(part)(_mapped(value, change) for value in part)
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        names = [each.name for each in dataclasses.fields(part)]
        return dataclasses.replace(part, **{n: _mapped(getattr(part, n), change) for n in names})
    return part
