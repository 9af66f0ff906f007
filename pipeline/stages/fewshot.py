"""Few-shot classification by the frozen features of a pre-trained encoder."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import matplotlib.pyplot as plt

from asl_core import distributed
from asl_core.engine.devices import pick_device
from asl_core.recipes.fewshot import FewShot
from asl_core.transfer.fewshot import Fit, few_shot
from pipeline.stages.pictures import save_figure
from pipeline.stages.request import StageRequest, StoredRun

FITS = "few_shot.json"


def run(request: StageRequest[FewShot]) -> dict[str, float]:
    """Classify the test images after each subset; write every fit and a figure."""
    distributed.initialise_from_environment(pick_device(request.resources))
    fits = few_shot(
        request.recipe, request.inputs["encoder"], request.inputs["dataset"], request.resources,
        request.features,
    )  # fmt: skip
    content = {name: [asdict(fit) for fit in draws] for name, draws in fits.items()}
    (request.out / FITS).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    _save_curve(request.out / "pictures/few_shot.png", fits)
    for path in (FITS, "pictures/few_shot.png"):
        request.journal.artifact(path)
    return _metrics(fits)


def reevaluate(run: StoredRun[FewShot]) -> dict[str, float]:
    """Classify the test images once more: there is nothing but the encoder to be stored."""
    return _metrics(few_shot(run.recipe, run.inputs["encoder"], run.inputs["dataset"],
                             run.resources))  # fmt: skip


def _metrics(fits: Mapping[str, Sequence[Fit]]) -> dict[str, float]:
    """Return mean and sample deviation over the draws, and whether all problems were solved."""
    metrics: dict[str, float] = {}
    for name, draws in fits.items():
        accuracies = [fit.accuracy for fit in draws]
        metrics[f"fewshot_acc1_{name}"] = statistics.fmean(accuracies)
        metrics[f"fewshot_std_{name}"] = (
            statistics.stdev(accuracies) if len(draws) > 1 else float("nan")
        )
    solved = all(fit.converged for draws in fits.values() for fit in draws)
    return {**metrics, "fewshot_converged": float(solved)}


def _save_curve(path: Path, fits: Mapping[str, Sequence[Fit]]) -> None:
    """Draw accuracy by the number of labelled images, a point for each draw."""
    points = sorted((fit.images, fit.accuracy) for draws in fits.values() for fit in draws)
    figure, axis = plt.subplots(figsize=(5, 3.5))
    axis.plot(*zip(*points, strict=True), "o", markersize=4)
    axis.set(xscale="log", xlabel="labelled images", ylabel="top-1 [%]")
    save_figure(figure, path)
