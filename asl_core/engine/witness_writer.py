"""Write down what a run's first steps were; see `witness`."""

import hashlib
import platform
from pathlib import Path

import torch
from torch import Tensor, nn

from asl_core import distributed
from asl_core.engine.context import RunContext
from asl_core.engine.witness import (
    LAST_STEP,
    Circumstances,
    TensorMark,
    tensor_steps,
    value_positions,
)


class WitnessWriter:
    """Keeps the losses of the first steps on their device until they are written.

    All processes call every method at the same steps; the first one writes.

    Args:
        context: Where it is written to.
        total_steps: Of the run.
    """

    def __init__(self, context: RunContext, total_steps: int) -> None:
        self.journal = context.journal
        self.last_step = min(LAST_STEP, total_steps)
        self._due = tensor_steps(total_steps)
        self._losses: dict[int, Tensor] = {}

    def begin(self, circumstances: Circumstances) -> None:
        """Say where the steps will be computed, if any of them is one of the first."""
        if circumstances.after_step < self.last_step and distributed.rank() == 0:
            self.journal.circumstances(circumstances)

    def note(self, step: int, loss: Tensor) -> None:
        """Keep the loss of a step, without making the device wait."""
        if step <= self.last_step:
            self._losses[step] = loss

    def write_if_due(self, step: int, model: nn.Module) -> None:
        """Write the losses, and the model's tensors, after a step that is one of the few."""
        if step in self._due:
            self._write(step, mark_tensors(model) if distributed.rank() == 0 else {})

    def write_losses(self, step: int) -> None:
        """Write the losses before a checkpoint: who resumes from it does not compute them again."""
        if self._losses:
            self._write(step, {})

    def _write(self, step: int, tensors: dict[str, TensorMark]) -> None:
        # exact: one process's float32 loss as float64, or the mean of several
        stacked = torch.stack([*self._losses.values()]).double()
        means = (distributed.all_reduce_sum(stacked) / distributed.world_size()).tolist()
        losses = dict(zip(self._losses, means, strict=True))
        self._losses = {}
        if distributed.rank() == 0:
            self.journal.witness(step, losses, tensors)


def mark_tensors(model: nn.Module) -> dict[str, TensorMark]:
    """Return marks of all tensors of a model's state."""
    return {
        name: mark_tensor(value)
        for name, value in model.state_dict().items()
        if isinstance(value, Tensor)
    }


def mark_tensor(tensor: Tensor) -> TensorMark:
    """Return what is kept of a tensor; computed on the CPU, for a GPU may have no memory left."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    whole = flat.double()
    return TensorMark(
        sha256=hashlib.sha256(flat.view(torch.uint8).numpy().data).hexdigest()[:16],
        dtype=str(tensor.dtype).removeprefix("torch."),
        shape=tuple(tensor.shape),
        norm=whole.norm().item(),
        values=tuple(whole[value_positions(len(whole))].tolist()),
    )


def present_circumstances(
    context: RunContext, device: torch.device, precision: str, after_step: int, total_steps: int
) -> Circumstances:
    """Return where this process computes."""
    return Circumstances(
        after_step=after_step,
        total_steps=total_steps,
        device=device.type,
        device_name=_device_name(device),
        threads=torch.get_num_threads(),
        processes=distributed.world_size(),
        micro_batch_size=context.resources.micro_batch_size,
        torch=torch.__version__,
        precision=precision,
        compiled=context.resources.compile,
    )


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # no Linux
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
