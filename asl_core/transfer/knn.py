"""k nearest neighbours by DINO's protocol: frozen features, a weighted vote (its eval_knn.py)."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from asl_core import distributed
from asl_core.engine.devices import pick_device
from asl_core.errors import InputError
from asl_core.modules.encoder import load_encoder
from asl_core.recipes.knn import NearestNeighbours
from asl_core.recipes.optimisation import Resources
from asl_core.transfer.classification import Predictions, gather_predictions
from asl_core.transfer.features import FeatureBatch, extract_features, labelled_dataset

CHUNK = 4096
"""So many test images are compared with so many training images at once."""
EQUAL = 1e-12
"""Cosines that differ by less differ in the rounding of float64 only."""


def classify_by_neighbours(
    recipe: NearestNeighbours, encoder_folder: Path, dataset_folder: Path, resources: Resources
) -> Predictions:
    """Let the nearest training images vote on each test image; a process votes on its share.

    The logits are those of `log_votes`.

    Raises:
        InputError: No encoder, no labels, fewer than k training images, or a tie for the last vote.
    """
    train, test = (labelled_dataset(dataset_folder, split) for split in ("train", "test"))
    if recipe.k > len(train):
        raise InputError(
            f"k {recipe.k} exceeds the {len(train)} training images of {train.manifest.name}; "
            "choose a smaller k"
        )
    encoder = load_encoder(encoder_folder, image_size=recipe.image_size)
    bank, own = (
        extract_features(
            encoder,
            split,
            poolings=(recipe.pooling,),
            precision=recipe.precision,
            resources=resources,
        )
        for split in (train, test)
    )
    queries = own.features[:, 0].to(pick_device(resources))
    cosines, labels = find_nearest(queries, bank, recipe.k + 1)
    _refuse_ties(cosines, own.indices)
    logits = log_votes(cosines[:, :-1], labels[:, :-1], recipe.temperature, train.num_classes)
    return gather_predictions(own.indices, own.labels, logits)


def find_nearest(queries: Tensor, bank: FeatureBatch, count: int) -> tuple[Tensor, Tensor]:
    """Return the cosines of the training images nearest to each query, and their labels.

    Features are compared in float64, so that neither chunks nor processes change who is near. Those
    of the training images stay with the process that has computed them and go round in chunks.

    Shape:
        - queries: (Q, D), this process's. bank: (N, 1, D), this process's share.
        - Output: (Q, count) float64, largest first, -inf where there is no image left; (Q, count).
    """
    queries = F.normalize(queries.double(), dim=1)
    cosines = torch.full((len(queries), count), -torch.inf, dtype=torch.float64).to(queries)
    labels = torch.zeros_like(cosines, dtype=torch.int64)
    step = max(1, CHUNK // distributed.world_size())
    for first in range(0, distributed.largest(len(bank.labels))[0], step):
        chunk = (bank.features[first : first + step, 0], bank.labels[first : first + step])
        # cloned: a view travels with all that it is a view of
        shares = distributed.gather_objects(tuple(part.clone() for part in chunk))
        keys, classes = (torch.cat(parts).to(queries.device) for parts in zip(*shares, strict=True))
        keys = F.normalize(keys.double(), dim=1)  # (C, D)
        for start in range(0, len(queries), CHUNK):
            rows = slice(start, start + CHUNK)
            found = torch.cat([cosines[rows], queries[rows] @ keys.T], dim=1)
            known = torch.cat([labels[rows], classes.expand(len(found), -1)], dim=1)
            cosines[rows], best = found.topk(count, dim=1)
            labels[rows] = known.gather(1, best)
    return cosines.cpu(), labels.cpu()


def log_votes(cosines: Tensor, labels: Tensor, temperature: float, num_classes: int) -> Tensor:
    """Return the logarithm of each class's share of the votes, -inf for a class without any.

    A neighbour's vote weighs exp(cosine / temperature).

    Shape:
        - cosines, labels: (Q, k). Output: (Q, num_classes).
    """
    weights = (cosines / temperature).softmax(dim=1)
    shares = weights.new_zeros(len(weights), num_classes)
    return shares.scatter_add(1, labels, weights).log()


def voted_accuracy(predictions: Predictions, k: int = 1) -> float:
    """Return the share of test images whose class is among the k with most votes, in percent.

    A class without a vote is no answer, and one that others draw level with stands behind them:
    neither may depend on the order of classes.
    """
    own = predictions.logits.gather(1, predictions.labels[:, None])  # (S, 1)
    place = (predictions.logits >= own).sum(dim=1)
    return 100.0 * ((place <= k) & own[:, 0].isfinite()).double().mean().item()


def _refuse_ties(cosines: Tensor, indices: Tensor) -> None:
    """Refuse a last vote to which two training images have the same claim; in all processes."""
    k = cosines.shape[1] - 1
    decided = (cosines[:, k - 1] - cosines[:, k] > EQUAL) & cosines[:, 0].isfinite()
    shares = distributed.gather_objects(indices[~decided].tolist())
    ties = sorted(index for share in shares for index in share)
    if ties:
        raise InputError(
            f"test image {ties[0]}, of {len(ties)} such, has no {k} nearest training images: "
            f"number {k + 1} is as near as number {k}, or its features are not finite; choose "
            "another k, or look whether the encoder sees all images alike"
        )
