"""Linear probing by MAE's protocol: frozen encoder, BatchNorm without affine, a Linear, LARS.

At the published rate on all training images, or at a grid of rates, poolings and blocks of which
held-out training images decide; see `asl_core.recipes.probing`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from asl_core.engine.context import RunContext
from asl_core.engine.forward_batch import refuse_single_images
from asl_core.errors import InputError
from asl_core.modules.encoder import Encoder, load_encoder
from asl_core.recipes.optimisation import Resources
from asl_core.recipes.transfer import LinearProbe
from asl_core.transfer.choice import first_best, split_held_out
from asl_core.transfer.classification import Predictions
from asl_core.transfer.feature_files import columns, split_features, stored_blocks
from asl_core.transfer.features import FeatureBatch, labelled_dataset
from asl_core.transfer.linear_heads import Head, ProbeHeads, heads_of
from asl_core.transfer.probe_training import fit_on_features, fit_on_images

ROWS = 4096
"""Vectors that are classified at once."""


@dataclass(frozen=True)
class ProbeResult:
    """What a probe says of the test images.

    Attributes:
        chosen: The head that counts; without a grid the one of the recipe's `pooling`.
        by_pooling: Best head of each pooling by the same rule, the chosen one's pooling first.
        predictions: Of the test split, by name of these heads; no other has seen it.
        held_out: Accuracy in percent on the images held out, by head; empty without a grid.
        training: Accuracy in percent on training batches, (2, heads): over the tenth of the steps
            before the last, over the last tenth.
    """

    chosen: Head
    by_pooling: dict[str, Head]
    predictions: dict[str, Predictions]
    held_out: dict[str, float]
    training: Tensor

    def of(self, pooling: str) -> Predictions:
        """Return the predictions of a pooling's best head."""
        return self.predictions[self.by_pooling[pooling].name]


def linprobe(
    recipe: LinearProbe,
    encoder_folder: Path,
    dataset_folder: Path,
    context: RunContext,
    features: Path | None = None,
) -> tuple[ProbeHeads, ProbeResult]:
    """Train a probe, choose among its heads, and predict the test split.

    Args:
        recipe: Rates, poolings, blocks.
        encoder_folder: Frozen encoder.
        dataset_folder: Packed dataset.
        context: Checkpoints, journal, resources.
        features: Folder of features that evaluations of an encoder share; absent: none is.

    Raises:
        InputError: No encoder, no labels, a batch larger than the training images, a forward pass
            of one image, more blocks than the encoder has, or nothing that could be held out.
    """
    micro_batch_size = context.resources.micro_batch_size
    refuse_single_images("the linear probe", recipe.batch_size, micro_batch_size)
    encoder = load_encoder(encoder_folder, image_size=recipe.image_size)
    if max(recipe.blocks) > encoder.vit.depth:
        raise InputError(
            f"grid_blocks {max(recipe.blocks)} exceeds the {encoder.vit.depth} blocks of the "
            f"encoder in {encoder_folder}; leave it out of grid_blocks"
        )
    train = labelled_dataset(dataset_folder, "train")
    labelled_dataset(dataset_folder, "test")  # refused now and not after training
    heads = ProbeHeads(recipe, encoder.vit.embed_dim, train.num_classes)
    if recipe.augment:
        training = fit_on_images(recipe, encoder, heads, train, context)
    else:
        rows = split_features(
            encoder, train, precision=recipe.precision, resources=context.resources,
            folder=features,
        )  # fmt: skip
        wanted = columns(heads.poolings, heads.blocks, stored_blocks(encoder))
        training = fit_on_features(recipe, heads, train, rows, context, wanted)
    result = evaluate_probe(
        heads, encoder, recipe, dataset_folder, context.resources, training, features
    )
    return heads, result


@torch.no_grad()
def evaluate_probe(
    heads: ProbeHeads,
    encoder: Encoder,
    recipe: LinearProbe,
    dataset_folder: Path,
    resources: Resources,
    training: Tensor,
    features: Path | None = None,
) -> ProbeResult:
    """Choose among the heads on images held out, then predict the test split.

    Args:
        heads: Trained.
        encoder: Frozen.
        recipe: Of both.
        dataset_folder: The packed dataset.
        resources: Device, workers.
        training: See `ProbeResult`.
        features: Folder of features that evaluations share; absent: none is.
    """

    def rows_of(split: str) -> FeatureBatch:
        return split_features(
            encoder, labelled_dataset(dataset_folder, split), precision=recipe.precision,
            resources=resources, folder=features,
        )  # fmt: skip

    every, held_out = heads_of(recipe), dict[str, float]()
    if recipe.grid_rates:
        train = labelled_dataset(dataset_folder, "train")
        _, held = split_held_out(train, recipe.held_out, recipe.seed)
        found = _predict(heads, encoder, rows_of("train"), held, [head.name for head in every])
        held_out = {name: predictions.accuracy() for name, predictions in found.items()}
    chosen = _best(every, held_out) if held_out else every[0]
    ordered = sorted(recipe.poolings, key=lambda pooling: pooling != chosen.pooling)
    by_pooling = {
        pooling: _best([head for head in every if head.pooling == pooling], held_out)
        for pooling in ordered
    }
    test = rows_of("test")
    wanted = [head.name for head in by_pooling.values()]
    predictions = _predict(heads, encoder, test, test.indices, wanted)
    return ProbeResult(chosen, by_pooling, predictions, held_out, training)


def _best(heads: Sequence[Head], held_out: Mapping[str, float]) -> Head:
    """Return the head with the largest accuracy, of equal ones the first."""
    return heads[first_best([held_out.get(head.name, 0.0) for head in heads])]


def _predict(
    heads: ProbeHeads,
    encoder: Encoder,
    rows: FeatureBatch,
    indices: Tensor,
    names: Sequence[str],
) -> dict[str, Predictions]:
    """Classify rows of a split; every process all of them."""
    heads.cpu().eval()
    wanted = columns(heads.poolings, heads.blocks, stored_blocks(encoder))
    parts: dict[str, list[Tensor]] = {name: [] for name in names}
    for part in indices.split(ROWS):
        scores = heads(rows.features[part][:, wanted].float())
        for name in names:
            parts[name].append(scores[name])
    return {
        name: Predictions(indices, rows.labels[indices], torch.cat(logits))
        for name, logits in parts.items()
    }
