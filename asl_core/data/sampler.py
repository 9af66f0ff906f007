"""Which samples make up which step: a pure function of the seed, whatever reads them.

epoch order   a permutation of the samples, drawn from (seed, epoch); the rest of it that
              fills no whole batch is dropped
step          batch_size consecutive samples of the order
process       an equal, consecutive part of the step
micro-batch   micro_batch_size consecutive samples of that part, the last one maybe fewer
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from asl_core.errors import InputError
from asl_core.randomness import torch_generator
from asl_core.wording import counted

Draw = tuple[int, int]
"""(epoch, index): an image as it is augmented in one epoch."""


@dataclass(frozen=True)
class StepPlan:
    """The samples of every step.

    Attributes:
        indices: Positions in the dataset that take part.
        seed: Of the epochs' orders.
        batch_size: Samples per step over all processes.
        epochs: How often the indices are gone through.
        rank: This process.
        world_size: Number of processes; divides batch_size.
        micro_batch_size: Samples per forward pass; None: the process's part at once.

    Raises:
        InputError: The batch is larger than the dataset, or does not split evenly.
    """

    indices: Sequence[int]
    seed: int
    batch_size: int
    epochs: int
    rank: int = 0
    world_size: int = 1
    micro_batch_size: int | None = None

    def __post_init__(self) -> None:
        if self.batch_size > len(self.indices):
            raise InputError(
                f"batch_size {self.batch_size} is larger than the training set of "
                f"{counted(len(self.indices), 'sample')}; use a smaller batch or more data"
            )
        if self.batch_size % self.world_size:
            raise InputError(
                f"batch_size {self.batch_size} does not split evenly over {self.world_size} "
                f"processes; use {self.batch_size // self.world_size * self.world_size} or another "
                "number of processes"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch."""
        return len(self.indices) // self.batch_size

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.steps_per_epoch * self.epochs

    @property
    def micro_batches_per_step(self) -> int:
        """Forward passes of this process in one step."""
        part, size = self.batch_size // self.world_size, self._micro_batch_size
        return -(-part // size)

    @property
    def _micro_batch_size(self) -> int:
        return self.micro_batch_size or self.batch_size // self.world_size

    def micro_batches(self, start_step: int) -> Iterator[list[Draw]]:
        """Yield this process's micro-batches from a step on; nothing before it is computed."""
        for epoch, positions in self.positions(start_step):
            yield [(epoch, self.indices[position]) for position in positions.tolist()]

    def positions(
        self, start_step: int, place: Callable[[Tensor], Tensor] = lambda order: order
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield epoch and positions in `indices`, (B,), of the same micro-batches.

        Args:
            start_step: The first step whose micro-batches are wanted.
            place: Called with each epoch's order, once; returns it where it is wanted.
        """
        part, size = self.batch_size // self.world_size, self._micro_batch_size
        order, order_epoch = torch.empty(0), -1
        for step in range(start_step, self.total_steps):
            epoch, number = divmod(step, self.steps_per_epoch)
            if epoch != order_epoch:
                order, order_epoch = place(self._order(epoch)), epoch
            first = number * self.batch_size + self.rank * part
            for start in range(first, first + part, size):
                yield epoch, order[start : min(start + size, first + part)]

    def _order(self, epoch: int) -> Tensor:
        return torch.randperm(
            len(self.indices), generator=torch_generator(self.seed, "order", epoch)
        )
