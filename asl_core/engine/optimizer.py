"""Parameter groups, optimisers and schedules, all from timm; steps are counted here once."""

import math
from collections.abc import Collection
from typing import Any

from timm.optim._optim_factory import create_optimizer_v2
from timm.optim._param_groups import param_groups_layer_decay, param_groups_weight_decay
from timm.scheduler.cosine_lr import CosineLRScheduler
from timm.scheduler.multistep_lr import MultiStepLRScheduler
from timm.scheduler.poly_lr import PolyLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.optim import Optimizer

from asl_core.recipes.optimisation import Optimisation


def no_decay_groups(
    model: nn.Module, recipe: Optimisation, no_decay: Collection[str] = ()
) -> list[dict[str, Any]]:
    """Split the parameters: no weight decay on 1-D tensors, biases, and those named."""
    return param_groups_weight_decay(model, recipe.weight_decay, no_weight_decay_list=no_decay)


def layer_decay_groups(
    model: nn.Module, recipe: Optimisation, no_decay: Collection[str] = ()
) -> list[dict[str, Any]]:
    """Split the parameters by layer: group l gets rate * layer_decay^(last - l).

    `model.group_matcher` says which parameter belongs to which layer (see
    `encoder_layer_matcher`). Source: official MAE `util/lr_decay.py`.
    """
    if recipe.layer_decay is None:
        return no_decay_groups(model, recipe, no_decay)
    return param_groups_layer_decay(
        model,
        recipe.weight_decay,
        no_weight_decay_list=no_decay,
        layer_decay=recipe.layer_decay,
    )


def lars_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Split for LARS: the rate of 1-D tensors is not scaled (official MAE `util/lars.py`)."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trainable if p.ndim > 1], "always_adapt": True},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]


def build_optimizer(groups: list[dict[str, Any]], recipe: Optimisation) -> Optimizer:
    """Build the recipe's optimiser at its peak learning rate."""
    if recipe.optimizer == "lars":
        return create_optimizer_v2(
            groups,
            opt="lars",
            lr=recipe.peak_lr,
            weight_decay=recipe.weight_decay,
            momentum=recipe.momentum,
            nesterov=False,
        )
    return create_optimizer_v2(
        groups,
        opt="adamw",
        lr=recipe.peak_lr,
        weight_decay=recipe.weight_decay,
        betas=recipe.betas,
        fused=True,
    )


def build_schedules(
    optimizer: Optimizer, recipe: Optimisation, steps_per_epoch: int, total_steps: int
) -> list[Scheduler]:
    """Build the schedules of rate and decay; `step_update(step)` sets what that step uses."""
    schedules = [_rate_schedule(optimizer, recipe, steps_per_epoch, total_steps)]
    if recipe.weight_decay_end is not None:
        schedules.append(_WeightDecaySchedule(optimizer, recipe.weight_decay_end, total_steps))
    return schedules


class _DinoSchedule(Scheduler):
    """DINO's table: the warm-up reaches the peak in its last step, where the cosine begins anew."""

    def __init__(
        self, optimizer: Optimizer, warmup_steps: int, total_steps: int, min_lr: float
    ) -> None:
        super().__init__(optimizer, "lr", t_in_epochs=False)
        self.warmup_steps, self.total_steps, self.min_lr = warmup_steps, total_steps, min_lr

    def _get_lr(self, t: int) -> list[float]:
        if t < self.warmup_steps:
            share = t / max(self.warmup_steps - 1, 1)
            return [share * peak for peak in self.base_values]
        done = (t - self.warmup_steps) / (self.total_steps - self.warmup_steps)
        return [_half_cosine(done, peak, self.min_lr) for peak in self.base_values]


class _WeightDecaySchedule(Scheduler):
    """Half a cosine over the run, without a warm-up; groups that have no decay get none."""

    def __init__(self, optimizer: Optimizer, end: float, total_steps: int) -> None:
        super().__init__(optimizer, "weight_decay", t_in_epochs=False)
        self.end, self.total_steps = end, total_steps

    def _get_lr(self, t: int) -> list[float]:
        done = t / self.total_steps
        return [_half_cosine(done, start, self.end) if start else 0.0 for start in self.base_values]


def _half_cosine(done: float, start: float, end: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * done)) / 2


def _rate_schedule(
    optimizer: Optimizer, recipe: Optimisation, steps_per_epoch: int, total_steps: int
) -> Scheduler:
    """Build the schedule of the rate.

    Linear warm-up from 0 over `warmup_epochs`, then the recipe's decay over what is left.
    """
    warmup_steps = min(round(recipe.warmup_epochs * steps_per_epoch), total_steps - 1)
    common: dict[str, Any] = {
        "warmup_t": warmup_steps,
        "warmup_lr_init": 0.0,
        "warmup_prefix": True,
        "t_in_epochs": False,
    }
    decay_steps = total_steps - warmup_steps
    if recipe.schedule == "dino":
        return _DinoSchedule(optimizer, warmup_steps, total_steps, recipe.min_lr)
    if recipe.schedule == "cosine":
        return CosineLRScheduler(optimizer, t_initial=decay_steps, lr_min=recipe.min_lr, **common)
    if recipe.schedule == "linear":
        return PolyLRScheduler(
            optimizer, t_initial=decay_steps, power=1.0, lr_min=recipe.min_lr, **common
        )
    # ViTDet drops by ten at 163,889 and 177,546 of 184,375 steps: 8/9 and 26/27
    # timm's schedule reads decay_t as the step after the drop
    drops = [round(decay_steps * 8 / 9) + 1, round(decay_steps * 26 / 27) + 1]
    return MultiStepLRScheduler(optimizer, decay_t=drops, decay_rate=0.1, **common)
