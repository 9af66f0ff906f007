"""BatchNorm whose batch is that of all processes, on GPUs and CPUs alike."""

from typing import cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules._functions import SyncBatchNorm as sync_batch_norm

from asl_core.distributed import sum_over_processes, world_size
from asl_core.precision import at_least_float32


class SharedBatchNorm(nn.BatchNorm2d):
    """torch's SyncBatchNorm, and the same on a CPU, where torch and its data parallelism refuse it.

    There mean and variance are taken in two passes, as a difference of squares would lose what
    matters. In one process both are `F.batch_norm`.

    Shape:
        - input: (B, C) or (B, C, ...). Output: the same.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise by the batch in training, by the running statistics in evaluation."""
        weight, bias = (self.weight, self.bias) if self.affine else (None, None)
        momentum = cast(float, self.momentum)
        if not self.training or world_size() == 1:
            return F.batch_norm(
                input, self.running_mean, self.running_var, weight, bias,
                self.training, momentum, self.eps,
            )  # fmt: skip
        if input.device.type == "cpu":
            channels_last = input.movedim(1, -1)
            rows = self._normalise(channels_last.reshape(-1, input.shape[1]), momentum)  # (R, C)
            return rows.reshape(channels_last.shape).movedim(-1, 1)
        return sync_batch_norm.apply(
            input, weight, bias, self.running_mean, self.running_var,
            self.eps, momentum, dist.group.WORLD, world_size(),
        )  # fmt: skip

    def _normalise(self, rows: Tensor, momentum: float) -> Tensor:
        assert self.running_mean is not None
        assert self.running_var is not None
        count = len(rows) * world_size()
        mean = sum_over_processes(rows.sum(0)) / count  # (C,)
        centred = rows - mean
        variance = sum_over_processes(centred.square().sum(0)) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * count / (count - 1), momentum)
        rows = centred / (variance + self.eps).sqrt()
        return rows * self.weight + self.bias if self.affine else rows


class BatchNorm(SharedBatchNorm):
    """Normalise each channel over all images, and all tokens, of a step; channels come last.

    Shape:
        - input: (..., C). Output: the same, at least float32.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise by the batch in training, by the running statistics in evaluation."""
        rows = at_least_float32(input).flatten(0, -2)  # (R, C)
        return super().forward(rows).reshape(input.shape)


def share_batch_norms(module: nn.Module) -> None:
    """Replace every BatchNorm2d inside a module by one over all processes, if there are several."""
    if world_size() == 1:
        return
    for name, child in module.named_children():
        if type(child) is nn.BatchNorm2d:
            shared = SharedBatchNorm(child.num_features, child.eps, child.momentum, child.affine)
            shared.load_state_dict(child.state_dict())
            setattr(module, name, shared)
        else:
            share_batch_norms(child)
