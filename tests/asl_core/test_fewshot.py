"""Few-shot classification: which images are drawn, and what is fitted to them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from process_groups import processes
from torch import nn

from asl_core.data.prepare import prepare
from asl_core.data.shards import PackedDataset
from asl_core.errors import InputError
from asl_core.modules.encoder import Encoder, load_encoder, save_encoder
from asl_core.recipes.datasets import Icons
from asl_core.recipes.fewshot import FewShot
from asl_core.recipes.models import Vit
from asl_core.recipes.optimisation import Resources
from asl_core.transfer.feature_files import split_features
from asl_core.transfer.fewshot import (
    Fit,
    centred_directions,
    few_shot,
    fit_logistic,
    subset_of,
)

VIT = Vit(
    image_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2,
    decoder_embed_dim=12, decoder_depth=1, decoder_num_heads=2,
)  # fmt: skip
CPU = Resources(device="cpu", threads=1)
RECIPE = FewShot(dataset="icons", percent=(10, 50), shots=(1, 3), draws=2)
ORDER = torch.randperm(47, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0] * 30 + [1] * 12 + [2] * 5)[ORDER]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("few") / "icons"
    prepare(Icons(image_size=16, train=120, test=40), folder, folder, name="icons")
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    encoder = Encoder(VIT)
    nn.init.normal_(encoder.norm.weight)
    save_encoder(folder, encoder.state_dict(), VIT)
    return folder


def test_subsets_have_their_share_of_each_class_and_lie_within_each_other() -> None:
    def counts(name: str) -> list[int]:
        return torch.bincount(LABELS[subset_of(RECIPE, name, LABELS, 0)]).tolist()

    assert counts("1shot") == [1, 1, 1]
    assert counts("3shot") == [3, 3, 3]
    assert counts("10pct") == [3, 1, 1]  # of five images half a one is one
    assert counts("50pct") == [15, 6, 2]
    for draw in range(2):
        drawn = {n: {*subset_of(RECIPE, n, LABELS, draw).tolist()} for n in RECIPE.subsets}
        assert drawn["1shot"] < drawn["3shot"]
        assert drawn["1shot"] < drawn["10pct"] < drawn["50pct"]


def test_draws_depend_on_the_seed_and_their_number_alone() -> None:
    first = subset_of(RECIPE, "3shot", LABELS, 0)
    assert torch.equal(first, subset_of(RECIPE, "3shot", LABELS, 0))
    assert not torch.equal(first, subset_of(RECIPE, "3shot", LABELS, 1))
    other = FewShot(dataset="icons", percent=(), shots=(3,), seed=1)
    assert not torch.equal(first, subset_of(other, "3shot", LABELS, 0))
    assert torch.equal(first, first.sort().values)


def test_vectors_are_centred_and_of_length_one() -> None:
    vectors = np.random.default_rng(0).normal(3.0, 2.0, (5, 7))
    found = centred_directions(vectors)
    np.testing.assert_allclose(found.mean(1), 0, atol=1e-15)
    np.testing.assert_allclose((found**2).sum(1), 1)
    assert np.isfinite(centred_directions(np.ones((2, 3)))).all()


@pytest.mark.parametrize("l2", [0.01, 1.0])
def test_the_gradient_of_the_objective_vanishes_at_the_fit(l2: float) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 60)
    vectors = centred_directions(rng.normal(size=(60, 6)) + np.eye(4, 6)[labels])
    model, converged = fit_logistic(vectors, labels, l2)
    assert converged
    weights = model.coef_  # (C, D)
    assert (model.intercept_ == 0).all()
    logits = vectors @ weights.T
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    gradient = (shares - np.eye(4)[labels]).T @ vectors + l2 * weights
    assert np.abs(gradient).max() < 1e-3 * np.abs(l2 * weights).max() + 1e-3


def test_accuracies_are_those_of_the_fit_on_the_features(encoder: Path, data: Path) -> None:
    found = few_shot(RECIPE, encoder, data, CPU)
    assert list(found) == ["10pct", "50pct", "1shot", "3shot"]
    train, test = (
        split_features(
            load_encoder(encoder), PackedDataset(data, split), precision="fp32", resources=CPU,
            folder=None,
        )
        for split in ("train", "test")
    )  # fmt: skip
    subset = subset_of(RECIPE, "50pct", train.labels, 1)
    vectors = [centred_directions(rows.features[:, 0].double().numpy()) for rows in (train, test)]
    model, _ = fit_logistic(vectors[0][subset], train.labels[subset].numpy(), RECIPE.l2)
    right = (model.predict(vectors[1]) == test.labels.numpy()).mean()
    assert found["50pct"][1].accuracy == pytest.approx(100 * right)
    assert found["50pct"][1].images == len(subset)
    assert found["1shot"][0].images == 10
    assert found["1shot"][0].train_accuracy == 100.0
    assert found["50pct"][0] != found["50pct"][1]


def classify(rank: int, encoder: Path, data: Path, work: Path) -> None:
    found = few_shot(RECIPE, encoder, data, CPU, work / "features")
    torch.save({name: [*map(vars, fits)] for name, fits in found.items()}, work / f"{rank}.pt")


@pytest.mark.distributed
def test_three_processes_share_the_fits_of_one(encoder: Path, data: Path, tmp_path: Path) -> None:
    assert processes(3, classify, encoder, data, tmp_path) == {0}
    alone = few_shot(RECIPE, encoder, data, CPU)
    for rank in range(3):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert {name: [Fit(**fit) for fit in fits] for name, fits in found.items()} == alone


def test_a_class_that_is_too_small_is_said(encoder: Path, data: Path) -> None:
    fewest = int(np.bincount(PackedDataset(data, "train").labels).min())
    said = rf"shots {fewest + 1} exceeds the {fewest} training images of a class of icons"
    with pytest.raises(InputError, match=said):
        few_shot(FewShot(dataset="icons", shots=(fewest + 1,)), encoder, data, CPU)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"percent": (), "shots": ()}, "both empty"),
        ({"percent": (0,)}, r"percent must be in \(0, 100\]"),
        ({"shots": (0,)}, "shots must be at least 1"),
        ({"l2": 0.0}, "l2 must be positive"),
        ({"draws": 0}, "draws must be at least 1"),
    ],
)
def test_recipes_refuse_values_that_make_no_sense(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FewShot(dataset="icons", **fields)
