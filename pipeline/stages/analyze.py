"""Token similarity of a pre-trained encoder (Figure 1), and its training as Eq. 8 sees it."""

import dataclasses
import json
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from asl_core.analysis.contrast import ContrastReport, measure_contrast
from asl_core.analysis.tokens import TokenReport, analyse_tokens
from asl_core.data.shards import PackedDataset
from asl_core.held_out import held_out_files
from asl_core.modules.encoder import load_encoder
from asl_core.recipes.analysis import TokenAnalysis
from pipeline.rounding import fixed
from pipeline.stages.pictures import save_figure
from pipeline.stages.request import StageRequest, StoredRun
from pipeline.stages.same_images import show_same_images
from pipeline.writing import or_null


def run(request: StageRequest[TokenAnalysis]) -> dict[str, float]:
    """Measure; write the numbers, and pictures of them.

    An encoder that was not trained here has no decoder: no predictions, no contrastive view.
    """
    encoder = load_encoder(request.inputs["encoder"])
    dataset = PackedDataset(request.inputs["dataset"], "test")
    tokens = analyse_tokens(encoder, dataset, request.recipe, request.resources)
    _write_json(
        request,
        "similarity.json",
        {
            "metrics": tokens.metrics,
            "per_layer": tokens.per_layer,
            "cka_to_last": tokens.cka_to_last,
        },
    )
    _draw_layers(request, tokens)
    _draw_maps(request, tokens)
    metrics = tokens.metrics
    if files := _held_out(request.inputs):
        reports = measure_contrast(files, request.recipe, request.resources)
        branches = {name: _numbers(report) for name, report in reports.items()}
        # the branch of the encoder that is exported, and which MAE has too, comes first
        _write_json(request, "contrastive.json", branches.pop("ori") | branches)
        _draw_contrast(request, reports)
        metrics = metrics | reports["ori"].metrics
    show_same_images(request, encoder, dataset)
    return metrics


def reevaluate(run: StoredRun[TokenAnalysis]) -> dict[str, float]:
    """Measure once more."""
    encoder = load_encoder(run.inputs["encoder"])
    dataset = PackedDataset(run.inputs["dataset"], "test")
    metrics = analyse_tokens(encoder, dataset, run.recipe, run.resources).metrics
    if files := _held_out(run.inputs):
        metrics = metrics | measure_contrast(files, run.recipe, run.resources)["ori"].metrics
    return metrics


def _held_out(inputs: dict[str, Path]) -> dict[int, Path]:
    """Return the predictions that were kept while the encoder was trained, by step."""
    return held_out_files(inputs["held_out"])


def _numbers(report: ContrastReport) -> dict[str, object]:
    return {
        name: [dataclasses.asdict(point) for point in getattr(report, name)]
        for name in ("by_batch", "by_temperature", "over_training")
    }


def _write_json(request: StageRequest[object], name: str, content: dict[str, object]) -> None:
    text = json.dumps(or_null(content), indent=1, allow_nan=False)
    (request.out / name).write_text(text + "\n")


def _draw_layers(request: StageRequest[object], report: TokenReport) -> None:
    figure, axis = plt.subplots(figsize=(4.5, 3))
    axis.plot(report.per_layer, marker="o", ms=3)
    axis.set_xlabel("block (0: embedded patches)")
    axis.set_ylabel("mean token cosine")
    axis.grid(alpha=0.3)
    save_figure(figure, request.out / "pictures/similarity_per_layer.png")
    request.journal.artifact("pictures/similarity_per_layer.png")


def _draw_maps(request: StageRequest[object], report: TokenReport) -> None:
    count = len(report.images)
    shares = [1.0] * count + [0.08]  # of the width: the last is the colour bar
    figure, axes = plt.subplots(
        2, count + 1, figsize=(1.5 * count + 0.5, 3.2), width_ratios=shares, squeeze=False
    )
    for axis in axes.flat:
        axis.axis("off")
    for i in range(count):
        axes[0, i].imshow(report.images[i].permute(1, 2, 0).numpy())
        drawn = axes[1, i].imshow(report.maps[i].numpy(), vmin=-1, vmax=1, cmap="coolwarm")
        if i == 0:
            axes[1, -1].axis("on")
            bar = figure.colorbar(drawn, cax=axes[1, -1], ticks=(-1, 0, 1))
            bar.set_label("cosine", fontsize=10)
    figure.suptitle("cosine of each token to that of the central patch", fontsize=11)
    save_figure(figure, request.out / "pictures/token_similarity.png")
    request.journal.artifact("pictures/token_similarity.png")


def _draw_contrast(request: StageRequest[object], reports: dict[str, ContrastReport]) -> None:
    """Draw the two losses of each patch, what their correlation depends on, and the retrieval."""
    figure, axes = plt.subplots(2, 2, figsize=(8.5, 6.5))
    _draw_patches(axes[0, 0], reports["ori"])
    for name, report in reports.items():
        _draw_temperatures(axes[0, 1], name, report)
        _draw_batches(axes[1, 0], name, report)
        _draw_retrieval(axes[1, 1], name, report)
    for axis in axes.flat[1:]:
        axis.grid(alpha=0.3)
        axis.legend(fontsize=9)
    for axis in (axes[0, 1], axes[1, 0]):
        axis.set_ylim(min(0, axis.get_ylim()[0]), 1)
    save_figure(figure, request.out / "pictures/contrastive_view.png")
    request.journal.artifact("pictures/contrastive_view.png")


def _draw_patches(axis: Axes, report: ContrastReport) -> None:
    axis.hexbin(report.mse.numpy(), report.contrast.numpy(), gridsize=40, bins="log", mincnt=1)
    default = report.by_batch[-1]
    axis.set_title(
        f"{len(report.mse)} removed patches, r = {fixed(default.pearson, 2)}", fontsize=10
    )
    axis.set_xlabel("MSE of the patch (Eq. 1)")
    axis.set_ylabel("contrastive loss (Eq. 8)")


def _draw_temperatures(axis: Axes, branch: str, report: ContrastReport) -> None:
    points = sorted(report.by_temperature, key=lambda point: point.factor)
    factors = [point.factor for point in points]
    axis.semilogx(factors, [p.pearson for p in points], marker="o", ms=3, label=f"r, {branch}")
    axis.semilogx(
        factors, [p.spearman for p in points], marker="s", ms=3, ls="--", label=f"rank, {branch}"
    )
    axis.set_xlabel("temperature, in units of 2 MSE")
    axis.set_ylabel("correlation of both losses")


def _draw_batches(axis: Axes, branch: str, report: ContrastReport) -> None:
    patches = [point.patches for point in report.by_batch]
    axis.semilogx(
        patches, [p.pearson for p in report.by_batch], marker="o", ms=3, label=f"r, {branch}"
    )
    axis.semilogx(
        patches,
        [p.spearman for p in report.by_batch],
        marker="s", ms=3, ls="--", label=f"rank, {branch}",
    )  # fmt: skip
    axis.set_xticks(patches, [str(number) for number in patches])
    axis.minorticks_off()
    axis.set_xlabel("removed patches in the batch")
    axis.set_ylabel("correlation of both losses")


def _draw_retrieval(axis: Axes, branch: str, report: ContrastReport) -> None:
    """Draw the retrieval over training where it was kept, otherwise over the batch."""
    if report.over_training:
        x = [point.step for point in report.over_training]
        y = [point.retrieval_acc1 for point in report.over_training]
        chance = [100 / report.by_batch[-1].patches] * len(x)
        axis.set_xlabel("optimiser step")
    else:
        x = [point.patches for point in report.by_batch]
        y = [point.retrieval_acc1 for point in report.by_batch]
        chance = [100 / patches for patches in x]
        axis.set_xlabel("removed patches in the batch")
    axis.plot(x, y, marker="o", ms=3, label=branch)
    if branch == "ori":
        axis.plot(x, chance, color="grey", ls=":", label="chance")
    axis.set_ylabel("nearest to its own patch, %")
