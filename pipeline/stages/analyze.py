"""Token similarity of a pre-trained encoder (Figure 1)."""

import json
import math

import matplotlib.pyplot as plt

from asl_core.analysis.tokens import TokenReport, analyse_tokens
from asl_core.data.shards import PackedDataset
from asl_core.modules.encoder import load_encoder
from pipeline.stages.pictures import save_figure
from pipeline.stages.request import StageRequest


def run(request: StageRequest) -> dict[str, float]:
    """Measure; write the numbers, the curve over the layers and maps of similarity."""
    encoder = load_encoder(request.inputs["encoder"])
    dataset = PackedDataset(request.inputs["dataset"], "test")
    report = analyse_tokens(encoder, dataset, request.recipe, request.resources)
    (request.out / "similarity.json").write_text(
        json.dumps({"metrics": report.metrics, "per_layer": report.per_layer}, indent=1) + "\n"
    )
    _draw_layers(request, report)
    _draw_maps(request, report)
    return {name: value for name, value in report.metrics.items() if math.isfinite(value)}


def _draw_layers(request: StageRequest, report: TokenReport) -> None:
    figure, axis = plt.subplots(figsize=(4.5, 3))
    axis.plot(range(1, len(report.per_layer) + 1), report.per_layer, marker="o", ms=3)
    axis.set_xlabel("block")
    axis.set_ylabel("mean token cosine")
    axis.grid(alpha=0.3)
    save_figure(figure, request.out / "pictures/similarity_per_layer.png")
    request.journal.artifact("pictures/similarity_per_layer.png")


def _draw_maps(request: StageRequest, report: TokenReport) -> None:
    count = len(report.images)
    figure, axes = plt.subplots(2, count, figsize=(1.5 * count, 3), squeeze=False)
    for i in range(count):
        axes[0, i].imshow(report.images[i].permute(1, 2, 0).numpy())
        axes[1, i].imshow(report.maps[i].numpy(), vmin=-1, vmax=1, cmap="coolwarm")
        for axis in axes[:, i]:
            axis.axis("off")
    figure.suptitle("cosine of each token to that of the central patch", fontsize=8)
    save_figure(figure, request.out / "pictures/token_similarity.png")
    request.journal.artifact("pictures/token_similarity.png")
