"""Find the step at which a loss stopped being finite."""

import torch
from torch import Tensor


class LossWatch:
    """Remembers the first step whose loss is not finite, without making the device wait.

    Args:
        device: Where the losses are.
    """

    def __init__(self, device: torch.device) -> None:
        self._first = torch.full((), -1, dtype=torch.int64, device=device)
        self._indices: dict[int, list[Tensor]] = {}

    def note(self, step: int, loss: Tensor, indices: list[Tensor]) -> None:
        """Look at the loss of a step and at the samples that it was computed from."""
        bad = ~torch.isfinite(loss.detach()) & (self._first < 0)
        self._first = torch.where(bad, step, self._first)
        self._indices[step] = indices

    def first_bad(self) -> tuple[int, list[int]] | None:
        """Return the first bad step and its samples; None, and forget them, if all were good."""
        step = int(self._first)
        if step < 0:
            self._indices.clear()
            return None
        return step, torch.cat(self._indices[step]).tolist()
