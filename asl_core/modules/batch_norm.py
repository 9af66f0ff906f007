"""BatchNorm whose batch is that of all processes, on GPUs and CPUs alike."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asl_core.distributed import sum_over_processes, world_size
from asl_core.precision import at_least_float32


class BatchNorm(nn.Module):
    """Normalise each channel over all images, and all tokens, of a step.

    torch's own SyncBatchNorm does the same on GPUs alone. In one process this is `F.batch_norm`;
    in several, mean and variance are taken in two passes, as a difference of squares would lose
    what matters.

    Args:
        width: Channels, C.
        eps: Added to the variance.
        momentum: Share of the batch in the running statistics.
        affine: Whether scale and shift are learnt.
        device, dtype: Of parameters and statistics.

    Shape:
        - x: (..., C). Output: the same, at least float32.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self,
        width: int,
        *,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = (
            nn.Parameter(torch.ones(width, device=device, dtype=dtype)) if affine else None
        )
        self.bias = nn.Parameter(torch.zeros(width, device=device, dtype=dtype)) if affine else None
        self.register_buffer("running_mean", torch.zeros(width, device=device, dtype=dtype))
        self.register_buffer("running_var", torch.ones(width, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise by the batch in training, by the running statistics in evaluation."""
        rows = at_least_float32(x).flatten(0, -2)  # (R, C)
        if self.training and world_size() > 1:
            rows = self._normalise_over_processes(rows)
        else:
            rows = F.batch_norm(
                rows, self.running_mean, self.running_var, self.weight, self.bias,
                self.training, self.momentum, self.eps,
            )  # fmt: skip
        return rows.reshape(x.shape)

    def _normalise_over_processes(self, rows: Tensor) -> Tensor:
        count = len(rows) * world_size()
        mean = sum_over_processes(rows.sum(0)) / count  # (C,)
        centred = rows - mean
        variance = sum_over_processes(centred.square().sum(0)) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        rows = centred / (variance + self.eps).sqrt()
        if self.weight is None or self.bias is None:
            return rows
        return rows * self.weight + self.bias
