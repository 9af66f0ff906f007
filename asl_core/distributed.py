"""Rank, world size and gathers that are the identity without a process group."""

import os
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from asl_core.errors import TrainingError
from asl_core.ranks import meeting_point, ranks_of

T = TypeVar("T")


def rank() -> int:
    """Return this process's rank; 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    """Wait for all processes."""
    if dist.is_initialized():
        dist.barrier()


def all_reduce_sum(x: Tensor) -> Tensor:
    """Return the sum of `x` over all processes, as a new tensor."""
    if not dist.is_initialized():
        return x
    total = x.clone()
    dist.all_reduce(total)
    return total


def gather_constant(x: Tensor) -> Tensor:
    """Return the rows of all processes in the order of their ranks, as constants.

    No gradient flows into them, from one process either: what a single process computes must be
    what several do.

    Shape:
        - x: (B, ...), B alike in all processes. Output: (world size * B, ...).
    """
    rows = x.detach().contiguous()
    if not dist.is_initialized():
        return rows
    parts = [torch.empty_like(rows) for _ in range(world_size())]
    dist.all_gather(parts, rows)
    return torch.cat(parts)


def sum_over_processes(x: Tensor) -> Tensor:
    """Return the sum of `x` over all processes, with a gradient.

    The gradient of the input is the sum over the processes of the output's: that of the sum of all
    processes' losses. The average that data-parallel training takes of it is then exact.
    """
    return _Sum.apply(x) if dist.is_initialized() else x  # type: ignore[return-value]


def gather_rows(x: Tensor) -> Tensor:
    """Return the rows of all processes in the order of their ranks, with a gradient.

    That of a process's rows is the sum over the processes of what each has for them, as in
    `sum_over_processes`.

    Shape:
        - x: (B, ...), B alike in all processes. Output: (world size * B, ...).
    """
    if not dist.is_initialized():
        return x
    none = torch.zeros_like(x)
    return sum_over_processes(torch.cat([x if i == rank() else none for i in range(world_size())]))


def mean_over_processes(x: Tensor) -> Tensor:
    """Return the mean of `x` over all processes, without a gradient."""
    return all_reduce_sum(x.detach()) / world_size()


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return all_reduce_sum(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return all_reduce_sum(grad.contiguous())


def largest(*numbers: int) -> list[int]:
    """Return for each number the largest over all processes.

    Travels between CPUs: no GPU is waited for, so that each step can afford it.
    """
    if not dist.is_initialized():
        return [*numbers]
    maxima = torch.tensor(numbers, dtype=torch.int64)
    dist.all_reduce(maxima, op=dist.ReduceOp.MAX)
    return maxima.tolist()


def any_process(flag: bool) -> bool:
    """Return whether the flag is set on any process."""
    return bool(largest(flag)[0])


def copy_from_first(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors, in place, with those of the first process."""
    if not dist.is_initialized():
        return
    for tensor in tensors:
        copy = tensor.contiguous()
        dist.broadcast(copy, src=0)
        tensor.copy_(copy)


def gather_objects(value: T) -> list[T]:
    """Return every process's value, in order of rank."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def decided_by_first(decide: Callable[[], T]) -> T:
    """Call `decide` in the first process only; return its value, or raise its error, in all."""
    if not dist.is_initialized():
        return decide()
    outcome: list[Any] = [None, None]
    if rank() == 0:
        try:
            outcome[0] = decide()
        except Exception as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome, src=0)
    value, error = outcome
    if error is not None:
        raise error
    return value


RENDEZVOUS_S = 300
"""For so long processes wait for each other at the beginning."""

STALL_S = 1800
"""For so long one may leave the others waiting later, while it writes a checkpoint for instance."""


def initialise_from_environment(device: torch.device) -> None:
    """Join the process group that RANK, WORLD_SIZE and MASTER_ADDR describe, if any.

    Tensors on GPUs travel by NCCL, those on CPUs and all objects by gloo. Without WORLD_SIZE, or
    with 1, nothing happens.

    Raises:
        InputError: These variables are no numbers, or do not go together.
        TrainingError: The other processes did not show up within `RENDEZVOUS_S`.

    Note:
        gloo listens where the node's own name leads; on a cluster where that is no network that
        the nodes share, set GLOO_SOCKET_IFNAME to the interface.
    """
    ranks = ranks_of(os.environ)
    if ranks.world_size == 1 or dist.is_initialized():
        return
    place, timeout = meeting_point(os.environ), timedelta(seconds=RENDEZVOUS_S)
    try:
        store, rank, world_size = next(rendezvous("env://", timeout=timeout))
    except dist.DistError as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise TrainingError(
            f"process {ranks.rank} of {ranks.world_size} has not met the others at {place}: "
            f"{reason}; look whether all were started and reach that address"
        ) from error
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        store=store,
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=STALL_S),
    )
