"""What an encoder in pre-training is worth, measured on a few training images.

k nearest neighbours and a ridge probe where the images have classes, effective rank, token
similarity; of methods that align two branches also `measure_alignment`. Of the training split,
for choices are made on these numbers: the test split stays unseen. One part of the images is the
bank that classifies the other part. A method that is trained with classes has seen those of both.

Nothing is drawn from a hidden state and nothing is changed, so a run that is watched trains to
the same bits as one that is not.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from asl_core.analysis.alignment import measure_alignment
from asl_core.analysis.quick_probes import ridge_accuracy, vote_accuracy
from asl_core.analysis.similarity import effective_rank, mean_token_cosine
from asl_core.analysis.watched import PREFIX, QUERIES
from asl_core.data.loaders import evaluation_batches
from asl_core.data.shards import PackedDataset
from asl_core.data.views import collate_labelled, evaluation_transform, normalise
from asl_core.engine.devices import autocast, move
from asl_core.held_out import evaluating, snapshot_steps
from asl_core.modules.encoder import NORM_EPS, Encoder
from asl_core.protocol import Aligning, Method, Views
from asl_core.randomness import torch_generator
from asl_core.recipes.pretraining import Pretraining

BUDGET = 0.02
"""Share of the images of a run that may be looked at once more for watching."""
MOST_IMAGES, LEAST_IMAGES = 3000, 300
"""At each point, a third of them classified by the others. 1,000 give an accuracy of 40 % a
standard error of 1.5, 100 one of 4.9: fewer say nothing."""
MOST_ALIGNED, LEAST_ALIGNED = 64, 8
ALIGNED_COST = 4
"""What an image costs of which two gradients are computed in full precision, in images: three
forward passes and four of the size of one backward, against one and two of a step."""
_BATCH = 100  # bounds memory; changes no number but by rounding


@dataclass(frozen=True)
class WatchPlan:
    """When an encoder is measured, and on how many images.

    Attributes:
        steps: Optimiser steps done, the first one 0.
        images: For probes, rank and similarity.
        aligned: For the alignment.
    """

    steps: tuple[int, ...]
    images: int
    aligned: int


def plan_watching(recipe: Pretraining, num_images: int) -> WatchPlan | None:
    """Return how a run is watched within `BUDGET`; the same for every method.

    An image that is looked at passes the encoder forward, whole; one that is trained on is also
    augmented, and passes encoder and decoder forward and backward: it costs at least as much.
    First the images of a point become fewer, then the points; the untrained encoder and the end
    stay. A function of the recipe, never of a clock. Several processes wait for the first one,
    which measures alone: their wait is longer by as many times as they are.

    Args:
        recipe: How long it trains, and at which snapshots it is watched.
        num_images: Of the training split.

    Returns:
        None where the recipe does not want it, or the run is too short for two points.
    """
    total = recipe.epochs * (num_images // recipe.batch_size)
    if not recipe.watch or not recipe.snapshots or not total:
        return None
    wanted = [0, *snapshot_steps(total, recipe.snapshots)]
    affordable = int(BUDGET * total * recipe.batch_size)
    points = min(len(wanted), affordable // (LEAST_IMAGES + ALIGNED_COST * LEAST_ALIGNED))
    if points < 2:
        return None
    each = affordable // points
    aligned = min(MOST_ALIGNED, max(LEAST_ALIGNED, each // (10 * ALIGNED_COST)))
    last = len(wanted) - 1
    return WatchPlan(
        steps=tuple(wanted[round(i * last / (points - 1))] for i in range(points)),
        images=min(MOST_IMAGES, each - ALIGNED_COST * aligned, num_images),
        aligned=min(aligned, num_images),
    )


def measure(
    method: Method, recipe: Pretraining, dataset: PackedDataset, plan: WatchPlan
) -> dict[str, float]:
    """Return all numbers of one point, by the names of their curves; by this process alone.

    Args:
        method: As it is now; left as it is.
        recipe: Its own.
        dataset: The training split.
        plan: How many images.

    Returns:
        Nothing where features are not finite: the loop ends such a run, and says why.
    """
    encoder = method.encoder
    if not isinstance(encoder, Encoder):
        raise TypeError(f"the encoder of {recipe.method} is a {type(encoder).__name__}")
    chosen = choose_images(dataset, plan.images)
    with evaluating(method):
        seen = _encode(encoder, dataset, chosen, recipe.precision)
    if not all(features.isfinite().all() for features in seen.features.values()):
        return {}
    found = {f"{PREFIX}token_similarity": seen.similarity.mean().item()}
    for pooling, features in seen.features.items():
        found[f"{PREFIX}effective_rank_{pooling}"] = effective_rank(features[None]).item()
    if len(chosen) >= 3 and (seen.labels >= 0).all():
        found |= _accuracies(seen)
    if isinstance(method, Aligning):
        indices = chosen[: plan.aligned]
        transform = evaluation_transform(recipe.model.image_size)
        batch = collate_labelled([transform(dataset[index]) for index in indices])
        views = Views((batch.images,), batch.indices)
        found |= measure_alignment(method, move(views, seen.similarity.device))
    return found


def choose_images(dataset: PackedDataset, count: int) -> list[int]:
    """Return the images to look at, at random but always the same; fewer are the first of more.

    Where some images have classes, of those. By no seed of the run: replicates are measured alike.
    """
    labelled = np.flatnonzero(dataset.labels >= 0) if dataset.has_labels else np.empty(0, np.int64)
    pool = labelled if len(labelled) else np.arange(len(dataset))
    order = torch.randperm(len(pool), generator=torch_generator(0, "watch"))[:count]
    return pool[order.numpy()].tolist()


@dataclass(frozen=True)
class _Seen:
    """What an encoder makes of images.

    Attributes:
        features: Pooling -> (N, D), float32.
        labels: (N,), -1 where there is none.
        similarity: Mean cosine of the patch tokens of each, (N,).
    """

    features: dict[str, Tensor]
    labels: Tensor
    similarity: Tensor


@torch.no_grad()
def _encode(encoder: Encoder, dataset: PackedDataset, indices: list[int], precision: str) -> _Seen:
    """Encode whole images without augmentation; poolings as the transfer stages read them out."""
    device = next(encoder.parameters()).device
    mean, std = dataset.manifest.mean, dataset.manifest.std
    batches = evaluation_batches(
        dataset, evaluation_transform(encoder.vit.image_size), collate_labelled,
        batch_size=_BATCH, subset=indices,
    )  # fmt: skip
    parts: list[tuple[Tensor, ...]] = []
    for batch in batches:
        images, labels = move((batch.images, batch.labels), device)
        with autocast(device, precision):
            tokens = encoder.before_norm(normalise(images, mean, std))  # (B, 1 + N, D)
            normed = encoder.norm(tokens)
            pooled = F.layer_norm(tokens[:, 1:].mean(dim=1), tokens.shape[-1:], eps=NORM_EPS)
        similarity = mean_token_cosine(normed[:, 1:])
        parts.append((normed[:, 0].float(), pooled.float(), labels, similarity))
    cls, mean_pooled, labels, similarity = (torch.cat(x) for x in zip(*parts, strict=True))
    return _Seen({"cls": cls, "mean": mean_pooled}, labels, similarity)


def _accuracies(seen: _Seen) -> dict[str, float]:
    """Let two thirds of the images classify the others."""
    count = len(seen.labels) // 3
    queries, bank = slice(count), slice(count, None)
    found = {QUERIES: float(count)}
    for pooling, features in seen.features.items():
        split = (features[bank], seen.labels[bank], features[queries], seen.labels[queries])
        found[f"{PREFIX}knn_acc1_{pooling}"] = vote_accuracy(*split)
        found[f"{PREFIX}probe_acc1_{pooling}"] = ridge_accuracy(*split)
    return found
