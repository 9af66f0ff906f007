"""k nearest neighbours by DINO's protocol: frozen features, a weighted vote (its eval_knn.py)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from asl_core import distributed
from asl_core.data.shards import PackedDataset
from asl_core.engine.devices import pick_device
from asl_core.errors import InputError
from asl_core.modules.encoder import Encoder, load_encoder
from asl_core.recipes.knn import NearestNeighbours
from asl_core.recipes.optimisation import Resources
from asl_core.transfer.choice import first_best, split_held_out
from asl_core.transfer.classification import Predictions, gather_predictions
from asl_core.transfer.feature_files import columns, split_features, stored_blocks
from asl_core.transfer.features import FeatureBatch, labelled_dataset

CHUNK = 4096
"""So many test images are compared with so many training images at once."""
EQUAL = 1e-12
"""Cosines that differ by less differ in the rounding of float64 only: the image that comes first in
the training split is the nearer one, so that copies of one image decide nothing by chance."""
MOST_IMAGES = 1 << 21
"""Training images whose place fits beside such a cosine in 63 bits."""


@dataclass(frozen=True)
class Vote:
    """What the neighbours say of the test images.

    Attributes:
        pooling: What was compared where it counts.
        k: How many voted there.
        by_pooling: Predictions of each pooling, with the k that is best for it by the same rule;
            their logits are those of `log_votes`.
        held_out: Accuracy in percent on the images held out, by pooling and k; empty where the
            recipe leaves nothing to choose.
    """

    pooling: str
    k: int
    by_pooling: dict[str, Predictions]
    held_out: dict[tuple[str, int], float]

    @property
    def predictions(self) -> Predictions:
        """Of the pooling that counts."""
        return self.by_pooling[self.pooling]


def classify_by_neighbours(
    recipe: NearestNeighbours,
    encoder_folder: Path,
    dataset_folder: Path,
    resources: Resources,
    features: Path | None = None,
) -> Vote:
    """Let the nearest training images vote on each test image; a process votes on its share.

    Args:
        recipe: Voters, temperature, what is compared.
        encoder_folder: Frozen encoder.
        dataset_folder: Packed dataset.
        resources: Device, workers.
        features: Folder of features that evaluations of an encoder share; absent: none is.

    Raises:
        InputError: No encoder, no labels, fewer than k training images or too many of them, or
            features that are not finite.
    """
    train, test = (labelled_dataset(dataset_folder, split) for split in ("train", "test"))
    if max(recipe.ks) > len(train):
        raise InputError(
            f"k {max(recipe.ks)} exceeds the {len(train)} training images of "
            f"{train.manifest.name}; choose a smaller k"
        )
    if len(train) > MOST_IMAGES:
        raise InputError(
            f"{train.manifest.name} has {len(train)} training images, k-NN compares with at most "
            f"{MOST_IMAGES}; choose a smaller dataset"
        )
    encoder = load_encoder(encoder_folder, image_size=recipe.image_size)
    bank, queries = (
        split_features(
            encoder, split, precision=recipe.precision, resources=resources, folder=features
        )
        for split in (train, test)
    )
    _refuse_unless_finite(encoder_folder, bank, queries)
    every = [(pooling, k) for pooling in recipe.poolings for k in recipe.ks]
    held_out: dict[tuple[str, int], float] = {}
    if recipe.grid_k:
        held_out = _try_on_held_out(recipe, encoder, train, bank, resources)
    pooling, k = _best(every, held_out)
    by_pooling: dict[str, Predictions] = {}
    for name in sorted(recipe.poolings, key=lambda name: name != pooling):
        _, best_k = _best([each for each in every if each[0] == name], held_out)
        own, other = (_share(rows, name, encoder, rows.indices) for rows in (queries, bank))
        votes = _vote(recipe, own, other, (best_k,), train.num_classes, resources)
        by_pooling[name] = votes[best_k]
    return Vote(pooling, k, by_pooling, held_out)


def _best(
    choices: Sequence[tuple[str, int]], held_out: Mapping[tuple[str, int], float]
) -> tuple[str, int]:
    """Return the choice with the largest accuracy, of equal ones the first."""
    return choices[first_best([held_out.get(each, 0.0) for each in choices])]


def _try_on_held_out(
    recipe: NearestNeighbours,
    encoder: Encoder,
    train: PackedDataset,
    rows: FeatureBatch,
    resources: Resources,
) -> dict[tuple[str, int], float]:
    """Return each choice's accuracy on the images held out, on which the others vote.

    Raises:
        InputError: The others are fewer than k, or nothing is held out.
    """
    kept, held = split_held_out(train, recipe.held_out, recipe.seed)
    if max(recipe.ks) > len(kept):
        raise InputError(
            f"k {max(recipe.ks)} exceeds the {len(kept)} training images of "
            f"{train.manifest.name} that are not held out; choose a smaller k"
        )
    found: dict[tuple[str, int], float] = {}
    for pooling in recipe.poolings:
        queries, bank = (_share(rows, pooling, encoder, indices) for indices in (held, kept))
        votes = _vote(recipe, queries, bank, recipe.ks, train.num_classes, resources)
        found |= {(pooling, k): voted_accuracy(vote) for k, vote in votes.items()}
    return found


def _share(rows: FeatureBatch, pooling: str, encoder: Encoder, indices: Tensor) -> FeatureBatch:
    """Return this process's part of some rows of a split, with the features of one pooling."""
    own = indices[distributed.rank() :: distributed.world_size()]
    (column,) = columns((pooling,), 1, stored_blocks(encoder))
    features = rows.features[:, column][own, None].float()  # (S, 1, D)
    return FeatureBatch(features, rows.labels[own], own)


def _vote(
    recipe: NearestNeighbours,
    queries: FeatureBatch,
    bank: FeatureBatch,
    ks: Sequence[int],
    num_classes: int,
    resources: Resources,
) -> dict[int, Predictions]:
    """Let k rows of all processes' banks vote on the queries, for several k."""
    vectors = queries.features[:, 0].to(pick_device(resources))
    cosines, labels = find_nearest(vectors, bank, max(ks))
    return {
        k: gather_predictions(
            queries.indices,
            queries.labels,
            log_votes(cosines[:, :k], labels[:, :k], recipe.temperature, num_classes),
        )
        for k in ks
    }


def find_nearest(queries: Tensor, bank: FeatureBatch, count: int) -> tuple[Tensor, Tensor]:
    """Return the cosines of the training images nearest to each query, and their labels.

    Features are compared in float64, so that neither chunks nor processes change who is near; see
    `EQUAL`. Those of the training images stay with the process that has computed them and go round
    in chunks.

    Shape:
        - queries: (Q, D), this process's. bank: (N, 1, D), this process's share.
        - Output: (Q, count) float64, nearest first; (Q, count).
    """
    queries = F.normalize(queries.double(), dim=1)
    cosines = torch.full((len(queries), count), -2.0, dtype=torch.float64).to(queries)
    labels = torch.zeros_like(cosines, dtype=torch.int64)
    places = torch.full_like(labels, MOST_IMAGES - 1)
    step = max(1, CHUNK // distributed.world_size())
    for first in range(0, distributed.largest(len(bank.labels))[0], step):
        part = slice(first, first + step)
        chunk = (bank.features[part, 0], bank.labels[part], bank.indices[part])
        # cloned: a view travels with all that it is a view of
        shares = distributed.gather_objects(tuple(tensor.clone() for tensor in chunk))
        keys, classes, numbers = (
            torch.cat(parts).to(queries.device) for parts in zip(*shares, strict=True)
        )
        keys = F.normalize(keys.double(), dim=1)  # (C, D)
        for start in range(0, len(queries), CHUNK):
            rows = slice(start, start + CHUNK)
            found = torch.cat([cosines[rows], queries[rows] @ keys.T], dim=1)
            known = torch.cat([labels[rows], classes.expand(len(found), -1)], dim=1)
            where = torch.cat([places[rows], numbers.expand(len(found), -1)], dim=1)
            best = _rank(found, where).topk(count, dim=1).indices
            cosines[rows], labels[rows] = found.gather(1, best), known.gather(1, best)
            places[rows] = where.gather(1, best)
    return cosines.cpu(), labels.cpu()


def _rank(cosines: Tensor, places: Tensor) -> Tensor:
    """Return whole numbers in the order of who is nearer, and of equal ones who comes first."""
    return (cosines / EQUAL).round().long() * MOST_IMAGES + (MOST_IMAGES - 1 - places)


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


def _refuse_unless_finite(folder: Path, *splits: FeatureBatch) -> None:
    """Refuse an encoder that has broken; in all processes, for each looks at all rows."""
    parts = (part for rows in splits for part in rows.features.split(CHUNK))
    if not all(bool(part.isfinite().all()) for part in parts):
        raise InputError(
            f"the encoder in {folder} makes features that are not finite; look at its pre-training"
        )
