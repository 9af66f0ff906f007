"""Pictures that stages leave beside their numbers."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

matplotlib.use("Agg")
import matplotlib.pyplot as plt

TEXT = 10
"""Points, at 110 dots an inch: readable too where a page shows a picture at two thirds."""


def save_image_grid(path: Path, columns: Mapping[str, Sequence[Tensor] | Tensor]) -> None:
    """Draw images side by side: one row a sample, one titled column a kind.

    Args:
        path: PNG to write.
        columns: Title to images, float in [0, 1], (B, 3, H, W).
    """
    rows = min(len(images) for images in columns.values())
    figure, axes = plt.subplots(
        rows, len(columns), figsize=(1.7 * len(columns), 1.7 * rows), squeeze=False
    )
    for j, (title, images) in enumerate(columns.items()):
        axes[0, j].set_title(title, fontsize=TEXT)
        for i in range(rows):
            axes[i, j].imshow(images[i].permute(1, 2, 0).clamp(0, 1).numpy())
            axes[i, j].axis("off")
    save_figure(figure, path)


def save_confusion_matrix(path: Path, counts: Tensor, classes: list[str]) -> None:
    """Draw a confusion matrix, each row normalised by its class; counts where they fit.

    Args:
        path: PNG to write.
        counts: By (label, prediction), (K, K).
        classes: K names.
    """
    shares = counts.numpy() / np.maximum(counts.sum(dim=1, keepdim=True).numpy(), 1)
    side = 1.6 + 0.32 * min(len(classes), 40)
    figure, axis = plt.subplots(figsize=(side, side))
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axis.set_xlabel("predicted")
    axis.set_ylabel("label")
    if len(classes) <= 40:
        axis.set_xticks(range(len(classes)), classes, rotation=90, fontsize=TEXT)
        axis.set_yticks(range(len(classes)), classes, fontsize=TEXT)
    if len(classes) <= 20:
        for i in range(len(classes)):
            for j in range(len(classes)):
                colour = "white" if shares[i, j] > 0.5 else "black"
                axis.text(
                    j, i, str(int(counts[i, j])), ha="center", va="center", fontsize=8, c=colour
                )
    save_figure(figure, path)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG and close it; equal pictures are equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
