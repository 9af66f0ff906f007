"""One step of heads that are trained together, each as if alone, and how far they have come."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asl_core.engine.optimizer import lars_groups, no_decay_groups
from asl_core.protocol import Draw, Step
from asl_core.recipes.probing import Probing

RISE = 3.0
"""Percentage points; a rate that falls to zero still gains two at the end of a healthy probe."""


def has_converged(recipe: Probing, rate: float, training: Tensor, test: float) -> bool:
    """Return whether more steps, or a larger rate, would hardly have changed a probe.

    It has not converged where
    1. its rate is the largest of a grid: what limits it is how far its weights have come;
    2. there is one rate and no augmentation, and it knows the images that it is trained on no
       better than others: it has not begun to fit them. With augmentation these are not the same
       images, and one rate alone does not tell;
    3. its training accuracy over the last tenth of the steps exceeds that over the tenth before by
       `RISE` or more.

    Args:
        recipe: Of the probe.
        rate: Of the head.
        training: Its column of `Progress.accuracies`, (2,).
        test: Its accuracy on test images in percent.
    """
    before, last = training.tolist()
    if len(recipe.rates) > 1:
        limited = rate == recipe.rates[-1]
    else:
        limited = not recipe.augment and last <= test
    return not limited and not last - before >= RISE


class Progress(nn.Module):
    """Training accuracy of each head over the last tenth of the steps, and the tenth before.

    Args:
        heads: How many.
        total_steps: Of the run.
    """

    sums: Tensor

    def __init__(self, heads: int, total_steps: int) -> None:
        super().__init__()
        self.length, self.total_steps = total_steps // 10, total_steps
        self.register_buffer("sums", torch.zeros(2, heads, dtype=torch.float64))

    def tenth(self, step: int) -> int | None:
        """Return which of the two a step belongs to: 0 the tenth before, 1 the last; else None."""
        left = self.total_steps - step  # this step included
        if not 0 < left <= 2 * self.length:
            return None
        return int(left <= self.length)

    def statistics(self, logits: Iterable[Tensor], labels: Tensor, step: int) -> dict[str, Tensor]:
        """Return the batch's accuracies where they count, under the name that `add` knows."""
        tenth = self.tenth(step)
        if tenth is None:
            return {}
        right = [(scores.detach().argmax(1) == labels).double().mean() for scores in logits]
        return {f"tenth_{tenth}": torch.stack(right)}

    def add(self, statistics: Mapping[str, Tensor]) -> None:
        """Add a step's."""
        for name, accuracies in statistics.items():
            self.sums[int(name.removeprefix("tenth_"))] += accuracies.to(self.sums)

    @property
    def accuracies(self) -> Tensor:
        """In percent, (2, heads): of the tenth before the last, of the last; nan in short runs."""
        return 100.0 * self.sums.cpu() / (self.length or float("nan"))


def heads_step(
    logits: Mapping[str, Tensor], labels: Tensor, draw: Draw, progress: Progress
) -> Step:
    """Return the sum of the heads' losses: the gradient of each is that of its own.

    Few heads are logged one by one.
    """
    losses = {name: F.cross_entropy(scores, labels) for name, scores in logits.items()}
    terms = {f"loss_{name}": loss for name, loss in losses.items()}
    return Step(
        torch.stack([*losses.values()]).sum(),
        terms if 1 < len(terms) <= 2 else {},
        progress.statistics(logits.values(), labels, draw.step),
    )


def groups_by_rate(modules: Mapping[float, nn.Module], recipe: Probing) -> list[dict[str, Any]]:
    """Return the optimiser's groups of heads that differ in their rates.

    Both optimisers treat each tensor by itself: LARS scales it by its own norms.
    """

    def groups(module: nn.Module) -> list[dict[str, Any]]:
        return (
            lars_groups(module) if recipe.optimizer == "lars" else no_decay_groups(module, recipe)
        )

    return [{**group, "lr": rate} for rate, each in modules.items() for group in groups(each)]
