"""The scale of the loss in float16, whose range is too narrow for gradients as they are."""

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from asl_core.errors import TrainingError

CPU = torch.device("cpu")


class LossScaler:
    """torch's GradScaler and the number of steps that it has skipped.

    The loss is multiplied before the backward pass, gradients are divided before anybody looks at
    them. Where one is not finite the optimiser leaves the step out and the scale is halved; after
    2,000 steps without that it is doubled. Gradients of several processes are averaged before, so
    all skip the same steps. In other precisions everything passes through unchanged.

    Args:
        precision: fp16, or one that needs no scale.
        device: Of the model.
    """

    def __init__(self, precision: str = "fp32", device: torch.device = CPU) -> None:
        self.enabled = precision == "fp16"
        self._scaler = torch.amp.GradScaler(device.type, enabled=self.enabled)
        self._one = torch.ones((), device=device)
        self._skipped = torch.zeros((), dtype=torch.int64, device=device)

    def scale(self, loss: Tensor) -> Tensor:
        """Return the loss to go backward from."""
        return self._scaler.scale(loss)

    def unscale(self, optimizer: Optimizer) -> None:
        """Divide the gradients, once all are there."""
        self._scaler.unscale_(optimizer)

    def step(self, optimizer: Optimizer) -> None:
        """Do the optimiser's step, or leave it out; without waiting for the device if fused."""
        if not self.enabled:
            optimizer.step()
            return
        before = self._scaler.scale(self._one)
        self._scaler.step(optimizer)
        self._scaler.update()
        self._skipped += self._scaler.scale(self._one) < before  # it is lowered after these alone

    def norm(self, norm: Tensor) -> Tensor:
        """Return a gradient's norm as it is logged: 0 of a step that is skipped."""
        return torch.where(norm.isfinite(), norm, 0.0) if self.enabled else norm

    def to_log(self) -> dict[str, float]:
        """Return the scale and how many steps were skipped so far; nothing where none can be."""
        if not self.enabled:
            return {}
        return {"loss_scale": self._scaler.get_scale(), "skipped_steps": float(self._skipped)}

    def check(self, label: str) -> None:
        """Stop a run that skips every step.

        Raises:
            TrainingError: The scale has fallen below 1, where no gradient was too large for
                float16 any more.
        """
        if self.enabled and (scale := self._scaler.get_scale()) < 1:
            raise TrainingError(
                f"{label}: gradients are not finite though the loss is; steps are skipped, "
                f"{int(self._skipped)} so far, and the scale of the loss has fallen to {scale:g}; "
                "lower the learning rate or use precision fp32"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return scale, its steps since the last change, and the number of skipped steps."""
        if not self.enabled:
            return {}
        return {"scaler": self._scaler.state_dict(), "skipped": int(self._skipped)}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        if self.enabled:
            self._scaler.load_state_dict(saved["scaler"])
            self._skipped.fill_(saved["skipped"])
