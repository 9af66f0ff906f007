"""The contrastive view of a trained method, measured on the removed patches of test images.

How a patch's pixel loss goes with its Eq. 8 loss as batch and temperature vary, and whether a
prediction is nearest to its own patch among all removed patches of the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from asl_core.analysis.contrastive_view import (
    contrast_patches,
    maximum_likelihood_variance,
    pearson,
    spearman,
)
from asl_core.engine.devices import pick_device
from asl_core.held_out import read_held_out
from asl_core.recipes.analysis import TokenAnalysis
from asl_core.recipes.optimisation import Resources


@dataclass(frozen=True)
class AtBatch:
    """One batch size, at the default temperature.

    Attributes:
        batch: Images whose removed patches are the candidates.
        patches: N of Eq. 7: candidates of each prediction.
        pearson, spearman: Correlation over patches of MSE and Eq. 8.
        loss_contrast: Mean of Eq. 8.
        retrieval_acc1: Percent of predictions nearest to their own patch; by chance 100 / patches.
    """

    batch: int
    patches: int
    pearson: float
    spearman: float
    loss_contrast: float
    retrieval_acc1: float


@dataclass(frozen=True)
class AtTemperature:
    """One temperature, at the largest batch; `factor` is in units of the default temperature."""

    temperature: float
    factor: float
    pearson: float
    spearman: float
    loss_contrast: float


@dataclass(frozen=True)
class AtStep:
    """One step of the training, at the largest batch; `loss_mae` is the mean MSE of the patches."""

    step: int
    retrieval_acc1: float
    loss_mae: float


@dataclass(frozen=True)
class ContrastReport:
    """Numbers of one branch of a method.

    Attributes:
        by_batch: In the order of their size; the last one is the default.
        by_temperature: In the order of the recipe.
        over_training: By step; empty where predictions were kept at the end alone.
        mse: Mean squared error of each patch, Eq. 1, (M,), float64.
        contrast: Its Eq. 8 loss at the default batch and temperature, (M,), float64.
    """

    by_batch: list[AtBatch]
    by_temperature: list[AtTemperature]
    over_training: list[AtStep]
    mse: Tensor
    contrast: Tensor

    @property
    def metrics(self) -> dict[str, float]:
        """Scalars by name, at the default batch and temperature."""
        default = self.by_batch[-1]
        return {
            "contrast_correlation": default.pearson,
            "contrast_spearman": default.spearman,
            "patch_retrieval_acc1": default.retrieval_acc1,
            "patch_retrieval_chance": 100 / default.patches,
        }


def measure_contrast(
    files: dict[int, Path], recipe: TokenAnalysis, resources: Resources
) -> dict[str, ContrastReport]:
    """Measure each branch ("ori", with ASL also "aug") on what its pre-training has kept.

    The default temperature is lambda = 2 sigma^2 with the variance that makes Eq. 5 most likely on
    the same predictions: their mean squared error. It follows from the paper's argument, in which
    sigma is the scale of the prediction's error, and from nothing else.

    Args:
        files: From `held_out_files`, by step; at least one.
        recipe: Batches and temperatures.
        resources: Where to compute.

    Raises:
        InputError: A file is damaged.
    """
    device = pick_device(resources)
    last = _to(read_held_out(files[max(files)]), device)
    reports = {}
    for branch in sorted(last.keys() - {"target"}, reverse=True):
        reports[branch] = _measure(last[branch], last["target"], recipe)
    if len(files) > 1:
        for step, path in files.items():
            held_out = _to(read_held_out(path), device)
            for branch, report in reports.items():
                point = _at_step(step, held_out[branch], held_out["target"], report)
                report.over_training.append(point)
    return reports


def _measure(pred: Tensor, target: Tensor, recipe: TokenAnalysis) -> ContrastReport:
    """Vary batch and temperature; predictions and targets are (B, R, P)."""
    batches = sorted({min(batch, len(pred)) for batch in recipe.contrast_batches})
    temperature = 2 * maximum_likelihood_variance(pred, target)
    by_batch = []
    for batch in batches:
        mse, losses, retrieved = _in_batches(pred, target, batch, [temperature])
        by_batch.append(
            AtBatch(
                batch=batch,
                patches=batch * pred.shape[1],
                pearson=pearson(mse, losses[0]),
                spearman=spearman(mse, losses[0]),
                loss_contrast=losses[0].mean().item(),
                retrieval_acc1=100 * retrieved.mean().item(),
            )
        )
    temperatures = [factor * temperature for factor in recipe.contrast_temperatures]
    mse, losses, _ = _in_batches(pred, target, batches[-1], [temperature, *temperatures])
    by_temperature = [
        AtTemperature(t, factor, pearson(mse, loss), spearman(mse, loss), loss.mean().item())
        for t, factor, loss in zip(
            temperatures, recipe.contrast_temperatures, losses[1:], strict=True
        )
    ]
    return ContrastReport(by_batch, by_temperature, [], mse.cpu(), losses[0].cpu())


def _at_step(step: int, pred: Tensor, target: Tensor, report: ContrastReport) -> AtStep:
    batch = report.by_batch[-1].batch
    mse, _, retrieved = _in_batches(pred, target, batch, [])
    return AtStep(step, 100 * retrieved.mean().item(), mse.mean().item())


def _in_batches(
    pred: Tensor, target: Tensor, batch: int, temperatures: Sequence[float]
) -> tuple[Tensor, Tensor, Tensor]:
    """Go through the images in whole batches, each its own set of candidates.

    Shape:
        - pred, target: (B, R, P).
        - Outputs: of each patch the MSE (M,), the Eq. 8 losses (T, M), the retrieval (M,).
    """
    used = len(pred) // batch * batch
    groups = zip(pred[:used].split(batch), target[:used].split(batch), strict=True)
    contrasts = [
        contrast_patches(p.flatten(0, 1), t.flatten(0, 1), temperatures) for p, t in groups
    ]
    mse = (pred[:used].double() - target[:used].double()).square().mean(dim=-1).flatten()
    losses = torch.cat([contrast.losses for contrast in contrasts], dim=1)
    return mse, losses, torch.cat([contrast.retrieved for contrast in contrasts])


def _to(tensors: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in tensors.items()}
