"""Attentive probing of a frozen encoder; see `attentive_heads`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from asl_core.data.shards import PackedDataset
from asl_core.engine.context import RunContext
from asl_core.engine.forward_batch import refuse_single_images
from asl_core.errors import InputError
from asl_core.modules.encoder import Encoder, load_encoder
from asl_core.recipes.attentive import AttentiveProbe
from asl_core.recipes.optimisation import Resources
from asl_core.transfer.attentive_heads import AttentiveHeads
from asl_core.transfer.choice import first_best, split_held_out
from asl_core.transfer.classification import Predictions
from asl_core.transfer.feature_files import STORED
from asl_core.transfer.features import FeatureBatch, encode_together, labelled_dataset
from asl_core.transfer.probe_training import fit_on_features, fit_on_images

MOST_GIB = 8.0
"""Patches of a training split that may be kept in memory."""


@dataclass(frozen=True)
class AttentiveResult:
    """What an attentive probe says of the test images.

    Attributes:
        rate: Learning rate of the head that counts.
        place: Its place among the recipe's rates.
        predictions: Its, of the test split, which no other head has seen.
        held_out: Accuracy in percent on the images held out, by rate; empty without a grid.
        training: As for the linear probe, (2, rates).
    """

    rate: float
    place: int
    predictions: Predictions
    held_out: list[float]
    training: Tensor


def attentive_probe(
    recipe: AttentiveProbe, encoder_folder: Path, dataset_folder: Path, context: RunContext
) -> tuple[AttentiveHeads, AttentiveResult]:
    """Train an attentive probe, choose among its rates, and predict the test split.

    Raises:
        InputError: As for the linear probe; or queries that do not divide the width, or more
            patches without augmentation than memory should hold.
    """
    micro_batch_size = context.resources.micro_batch_size
    refuse_single_images("the attentive probe", recipe.batch_size, micro_batch_size)
    encoder = load_encoder(encoder_folder, image_size=recipe.image_size)
    if encoder.vit.embed_dim % recipe.queries:
        raise InputError(
            f"queries {recipe.queries} does not divide the width {encoder.vit.embed_dim} of the "
            f"encoder in {encoder_folder}; choose a divisor"
        )
    train = labelled_dataset(dataset_folder, "train")
    labelled_dataset(dataset_folder, "test")  # refused now and not after training
    heads = AttentiveHeads(recipe, encoder.vit.embed_dim, train.num_classes)
    if recipe.augment:
        training = fit_on_images(recipe, encoder, heads, train, context)
    else:
        patches = _patches(recipe, encoder, heads, train, context.resources)
        training = fit_on_features(recipe, heads, train, patches, context)
    resources = context.resources
    return heads, evaluate_attentive(heads, encoder, recipe, dataset_folder, resources, training)


def evaluate_attentive(
    heads: AttentiveHeads,
    encoder: Encoder,
    recipe: AttentiveProbe,
    dataset_folder: Path,
    resources: Resources,
    training: Tensor,
) -> AttentiveResult:
    """Choose among the heads on images held out, then predict the test split."""
    place, held_out = 0, list[float]()
    if recipe.grid_rates:
        train = labelled_dataset(dataset_folder, "train")
        _, held = split_held_out(train, recipe.held_out, recipe.seed)
        every = range(len(recipe.rates))
        found = _predict(heads, encoder, recipe, train, held, every, resources)
        held_out = [predictions.accuracy() for predictions in found]
        place = first_best(held_out)
    test = labelled_dataset(dataset_folder, "test")
    indices = torch.arange(len(test))
    (predictions,) = _predict(heads, encoder, recipe, test, indices, [place], resources)
    return AttentiveResult(recipe.rates[place], place, predictions, held_out, training)


def _predict(
    heads: AttentiveHeads,
    encoder: Encoder,
    recipe: AttentiveProbe,
    dataset: PackedDataset,
    indices: Tensor,
    places: Sequence[int],
    resources: Resources,
) -> list[Predictions]:
    """Classify images of a split by the heads at some places."""
    heads.eval()

    def scores(images: Tensor) -> Tensor:
        heads.to(images.device)
        by_head = [*heads(heads.read(encoder, images)).values()]
        return torch.stack([by_head[place] for place in places], dim=1)  # (B, places, C)

    found = encode_together(
        encoder, dataset, indices.tolist(), scores, precision=recipe.precision, resources=resources
    )
    labels = torch.from_numpy(dataset.labels)[indices]
    heads.cpu()
    return [Predictions(indices, labels, logits) for logits in found.unbind(1)]


def _patches(
    recipe: AttentiveProbe,
    encoder: Encoder,
    heads: AttentiveHeads,
    train: PackedDataset,
    resources: Resources,
) -> FeatureBatch:
    """Return the patches of the training split, all of them in memory.

    Raises:
        InputError: They would take too much of it.
    """
    dtype = STORED[recipe.precision]
    values = len(train) * encoder.vit.num_patches * encoder.vit.embed_dim
    gib = values * dtype.itemsize / 2**30
    if gib > MOST_GIB:
        raise InputError(
            f"without augmentation the patches of {len(train)} images would take {gib:.0f} GiB of "
            f"memory, at most {MOST_GIB:g} are kept; set augment: true"
        )
    patches = encode_together(
        encoder, train, range(len(train)), lambda images: heads.read(encoder, images),
        precision=recipe.precision, resources=resources, dtype=dtype,
    )  # fmt: skip
    return FeatureBatch(patches, torch.from_numpy(train.labels), torch.arange(len(train)))
