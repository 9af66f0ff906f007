"""Few-shot classification: regularised logistic regression on frozen features of few images."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from asl_core import distributed
from asl_core.errors import InputError
from asl_core.modules.encoder import load_encoder
from asl_core.recipes.fewshot import FewShot
from asl_core.recipes.optimisation import Resources
from asl_core.transfer.choice import draw_order
from asl_core.transfer.feature_files import columns, split_features, stored_blocks
from asl_core.transfer.features import labelled_dataset

MOST_STEPS = 1000
"""Of L-BFGS; well-posed problems take fewer than 100."""
TOLERANCE = 1e-6
"""Largest component of the gradient of the mean loss at which a problem counts as solved."""


@dataclass(frozen=True)
class Fit:
    """One regression.

    Attributes:
        images: That it has learnt from.
        accuracy: On the test split, in percent.
        train_accuracy: On its own images, in percent.
        converged: Whether it was solved within `MOST_STEPS`.
    """

    images: int
    accuracy: float
    train_accuracy: float
    converged: bool


def few_shot(
    recipe: FewShot,
    encoder_folder: Path,
    dataset_folder: Path,
    resources: Resources,
    features: Path | None = None,
) -> dict[str, list[Fit]]:
    """Classify the test split after each subset of each draw; processes share the work.

    Args:
        recipe: Which subsets.
        encoder_folder: Frozen encoder.
        dataset_folder: Packed dataset.
        resources: Device, workers.
        features: Folder of features that evaluations of an encoder share; absent: none is.

    Returns:
        A fit for each draw, by name of the subset.

    Raises:
        InputError: No encoder, no labels, or a class with fewer images than `shots`.
    """
    encoder = load_encoder(encoder_folder, image_size=recipe.image_size)
    (column,) = columns((recipe.pooling,), 1, stored_blocks(encoder))
    vectors: dict[str, NDArray[np.float64]] = {}
    labels: dict[str, Tensor] = {}
    for split in ("train", "test"):
        dataset = labelled_dataset(dataset_folder, split)
        rows = split_features(
            encoder, dataset, precision=recipe.precision, resources=resources, folder=features
        )
        vectors[split] = centred_directions(rows.features[:, column].double().numpy())
        labels[split] = rows.labels
        if split == "train":
            _refuse_small_classes(recipe, labels[split], dataset.manifest.name)
    tasks = [(name, draw) for name in recipe.subsets for draw in range(recipe.draws)]
    found: dict[tuple[str, int], Fit] = {}
    for name, draw in tasks[distributed.rank() :: distributed.world_size()]:
        subset = subset_of(recipe, name, labels["train"], draw).numpy()
        train_labels, test_labels = labels["train"].numpy()[subset], labels["test"].numpy()
        model, converged = fit_logistic(vectors["train"][subset], train_labels, recipe.l2)
        found[name, draw] = Fit(
            len(subset),
            100.0 * float(model.score(vectors["test"], test_labels)),
            100.0 * float(model.score(vectors["train"][subset], train_labels)),
            converged,
        )
    shares = distributed.gather_objects(found)
    fits = {task: fit for share in shares for task, fit in share.items()}
    return {name: [fits[name, draw] for draw in range(recipe.draws)] for name in recipe.subsets}


def subset_of(recipe: FewShot, name: str, labels: Tensor, draw: int) -> Tensor:
    """Return the training images of a subset, in index order: the first ones drawn of each class.

    Args:
        recipe: With the seed and the subsets.
        name: Of a subset.
        labels: Of the training split, (N,).
        draw: Which one.
    """
    kind, amount = recipe.subsets[name]
    if kind == "percent":
        wanted = (torch.bincount(labels) * (amount / 100)).round().long().clamp(min=1)[labels]
    else:
        wanted = torch.full_like(labels, int(amount))
    return (draw_order(labels, recipe.seed, "few_shot", draw) < wanted).nonzero()[:, 0]


def centred_directions(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Centre each vector on its own mean and scale it to length 1; (N, D)."""
    centred = vectors - vectors.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(centred, axis=1, keepdims=True)
    return centred / np.maximum(lengths, np.finfo(np.float64).tiny)


def fit_logistic(
    vectors: NDArray[np.float64], labels: NDArray[np.int64], l2: float
) -> tuple[LogisticRegression, bool]:
    """Minimise the sum of cross-entropies and l2 / 2 |W|^2; say whether it was solved.

    Shape:
        - vectors: (N, D). labels: (N,).
    """
    model = LogisticRegression(C=1 / l2, fit_intercept=False, tol=TOLERANCE, max_iter=MOST_STEPS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # said by the result
        model.fit(vectors, labels)
    return model, int(np.max(model.n_iter_)) < MOST_STEPS


def _refuse_small_classes(recipe: FewShot, labels: Tensor, name: str) -> None:
    counts = torch.bincount(labels)
    smallest = int(counts[counts > 0].min())
    if recipe.shots and max(recipe.shots) > smallest:
        raise InputError(
            f"shots {max(recipe.shots)} exceeds the {smallest} training images of a class of "
            f"{name}; choose fewer"
        )
