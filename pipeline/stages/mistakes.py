"""The test images that a classifier got most wrong, as a picture."""

from pathlib import Path

import matplotlib.pyplot as plt

from asl_core.data.shards import PackedDataset
from asl_core.transfer.classification import Predictions
from pipeline.stages.pictures import save_figure

WORST = 12
"""Mistakes that are shown."""


def save_worst_mistakes(path: Path, predictions: Predictions, dataset: PackedDataset) -> None:
    """Draw the test images that were classified worst, each with its label and what was said.

    Args:
        path: PNG to write.
        predictions: Of the whole split.
        dataset: The split.
    """
    rows = predictions.worst(WORST).tolist()
    names = dataset.manifest.classes or ()
    shares = predictions.logits.softmax(dim=1)
    figure, axes = plt.subplots(2, WORST // 2, figsize=(1.5 * WORST // 2, 4), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, row in zip(axes.flat, rows, strict=False):
        label, said = int(predictions.labels[row]), int(predictions.logits[row].argmax())
        image = dataset.read_image(int(predictions.indices[row]))  # (3, H, W) uint8
        axis.imshow(image.permute(1, 2, 0).numpy())
        title = f"{names[label]}\nas {names[said]}, {100 * shares[row, said]:.0f} %"
        axis.set_title(title, fontsize=7)
    figure.suptitle("worst mistakes" if rows else "no mistakes", fontsize=8)
    save_figure(figure, path)
