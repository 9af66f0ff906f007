"""Teachers that follow a student: exponential moving averages of weights."""

import copy
import math

import torch
from torch import Tensor, nn


def frozen_copy(module: nn.Module) -> nn.Module:
    """Return a copy that no optimiser changes."""
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def ema_update(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move a teacher's parameters towards the student's: t = m t + (1 - m) s.

    Parameters of the same name belong together; what one of the two lacks stays as it is, as do
    buffers: a teacher's running statistics are those of its own passes.
    """
    own, others = dict(teacher.named_parameters()), dict(student.named_parameters())
    names = own.keys() & others.keys()
    targets: list[Tensor] = [own[name] for name in names]
    sources: list[Tensor] = [others[name] for name in names]
    # all tensors at once: one launch on a GPU, not one for each
    torch._foreach_mul_(targets, momentum)  # type: ignore[reportPrivateImportUsage]
    torch._foreach_add_(targets, sources, alpha=1 - momentum)  # type: ignore[reportPrivateImportUsage]


def momentum_at(step: int, total: int, start: float, end: float = 1.0) -> float:
    """Return the momentum after `step` of `total` steps: half a cosine from `start` to `end`."""
    return end - (end - start) * (1 + math.cos(math.pi * step / total)) / 2
