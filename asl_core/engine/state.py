"""All that a resume needs, in one place."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


@dataclass
class TrainState:
    """State of a run between two optimiser steps.

    Random numbers are functions of the step and the schedule is one, so neither is here.

    Attributes:
        step: Optimiser steps done.
        sums: Sums of the logged terms since the last log line, and how many steps they span.
    """

    model: nn.Module
    optimizer: Optimizer
    step: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)
    summed_steps: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return everything as tensors, numbers, lists and dictionaries."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "sums": self.sums,
            "summed_steps": self.summed_steps,
        }

    def restore(self, step: int, saved: dict[str, Any], device: torch.device) -> None:
        """Take over what `to_dict` returned after `step` steps."""
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.sums = {name: value.to(device) for name, value in saved["sums"].items()}
        self.summed_steps = saved["summed_steps"]
        self.step = step

    def add_terms(self, terms: dict[str, Tensor]) -> None:
        """Accumulate one step's terms."""
        for name, value in terms.items():
            previous = self.sums.get(name)
            self.sums[name] = value if previous is None else previous + value
        self.summed_steps += 1

    def take_means(self) -> dict[str, Tensor]:
        """Return the means since the last call and start anew."""
        means = {name: value / self.summed_steps for name, value in self.sums.items()}
        self.sums, self.summed_steps = {}, 0
        return means
