"""What a classifier did with the test images, as pictures."""

from pathlib import Path

import matplotlib.pyplot as plt

from asl_core.data.shards import PackedDataset
from asl_core.transfer.classification import Predictions
from pipeline.rounding import fixed
from pipeline.stages.pictures import save_confusion_matrix, save_figure
from pipeline.stages.request import StageRequest

WORST = 12
"""Mistakes that are shown."""


def picture_classification(request: StageRequest[object], predictions: Predictions) -> None:
    """Draw the confusion matrix and the worst mistakes on the test split."""
    test = PackedDataset(request.inputs["dataset"], "test")
    pictures, classes = request.out / "pictures", list(test.manifest.classes or ())
    save_confusion_matrix(pictures / "confusion.png", predictions.confusion(), classes)
    save_worst_mistakes(pictures / "worst_mistakes.png", predictions, test)
    for picture in ("confusion", "worst_mistakes"):
        request.journal.artifact(f"pictures/{picture}.png")


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
        title = f"{names[label]}\nas {names[said]}, {fixed(100 * shares[row, said].item(), 0)} %"
        axis.set_title(title, fontsize=9)
    figure.suptitle("worst mistakes" if rows else "no mistakes", fontsize=11)
    save_figure(figure, path)
