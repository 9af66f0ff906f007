"""All that a resume needs, in one place."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from asl_core import distributed
from asl_core.engine.loss_scaling import LossScaler


@dataclass
class TrainState:
    """State of a run between two optimiser steps.

    Random numbers are functions of the step and the schedule is one, so neither is here.

    Attributes:
        step: Optimiser steps done.
        sums: This process's sums of the logged terms since the last log line.
        summed_steps: How many steps they span.
        scaler: Scale of the loss, and the steps that were skipped for it.
    """

    model: nn.Module
    optimizer: Optimizer
    step: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)
    summed_steps: int = 0
    scaler: LossScaler = field(default_factory=LossScaler)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as tensors, numbers, lists and dictionaries.

        All processes call it at once: the sums of each are part of it, all else is the same.
        """
        sums = {name: value.cpu() for name, value in self.sums.items()}
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "sums": distributed.gather_objects(sums),
            "summed_steps": self.summed_steps,
            "scaler": self.scaler.state_dict(),
        }

    def restore(self, step: int, saved: dict[str, Any], device: torch.device) -> None:
        """Take over what `to_dict` returned after `step` steps.

        Where the number of processes has changed each goes on with the mean of the sums.
        """
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scaler.load_state_dict(saved["scaler"])
        by_rank = saved["sums"]
        if len(by_rank) == distributed.world_size():
            sums = by_rank[distributed.rank()]
        else:
            sums = {name: torch.stack([s[name] for s in by_rank]).mean(0) for name in by_rank[0]}
        self.sums = {name: value.to(device) for name, value in sums.items()}
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
