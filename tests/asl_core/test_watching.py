"""What pre-training is watched for: the numbers, by other means, and that nothing else changes."""

import dataclasses
import hashlib
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from miniatures import OTHERS, SHORT
from process_groups import processes
from sklearn.linear_model import RidgeClassifier
from sklearn.preprocessing import StandardScaler

from asl_core.analysis import watched
from asl_core.analysis.quick_probes import PENALTY, ridge_accuracy, vote_accuracy
from asl_core.analysis.watching import (
    ALIGNED_COST,
    BUDGET,
    LEAST_IMAGES,
    MOST_IMAGES,
    WatchPlan,
    choose_images,
    measure,
    plan_watching,
)
from asl_core.data.prepare import prepare
from asl_core.data.shards import PackedDataset
from asl_core.data.views import normalise
from asl_core.engine.context import RunContext
from asl_core.engine.journal import Journal
from asl_core.pretrain import build_method, pretrain
from asl_core.recipes.asl import AslRecipe
from asl_core.recipes.datasets import Scenes
from asl_core.recipes.mae import MaeRecipe
from asl_core.recipes.optimisation import Resources
from asl_core.transfer.features import FeatureBatch, frozen_features
from asl_core.transfer.knn import find_nearest, log_votes, voted_accuracy
from pipeline.jobs.journal import effective_points

PLAN = WatchPlan(steps=(0, 3, 10), images=30, aligned=20)
RECIPES = {"mae": MaeRecipe(**SHORT), "dle": AslRecipe(**SHORT, design="dle", dle_rate=0.3),
           "aee": AslRecipe(**SHORT)} | OTHERS  # fmt: skip


def clusters(count: int, width: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return points around five centres that overlap: (count, width), (count,)."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).standard_normal((5, width))
    labels = rng.integers(0, 5, count)
    points = 3 + centres[labels] + rng.standard_normal((count, width)) * np.linspace(0.3, 6, width)
    return torch.from_numpy(points).float(), torch.from_numpy(labels)


@pytest.mark.parametrize("count", [25, 200])
def test_the_ridge_probe_is_scikit_learns(count: int) -> None:
    (bank, known), (queries, labels) = clusters(count, 20, 1), clusters(500, 20, 2)
    scaler = StandardScaler().fit(bank.double().numpy())
    probe = RidgeClassifier(alpha=PENALTY * count).fit(
        scaler.transform(bank.double().numpy()), known.numpy()
    )
    expected = 100 * probe.score(scaler.transform(queries.double().numpy()), labels.numpy())
    found = ridge_accuracy(bank, known, queries, labels)
    assert found == pytest.approx(expected, abs=1e-9)
    assert 25 < found < 100


def test_a_class_that_the_bank_lacks_is_never_told_and_constant_features_are_harmless() -> None:
    bank, known = clusters(60, 6, 1)
    bank, known = bank[known < 3], known[known < 3]
    bank[:, 0] = 7.0
    queries, labels = clusters(90, 6, 2)
    queries[:, 0] = 7.0
    missing = labels >= 3
    assert ridge_accuracy(bank, known, queries[missing], labels[missing]) == 0
    assert vote_accuracy(bank, known, queries[missing], labels[missing]) == 0
    assert ridge_accuracy(bank, known, queries[~missing], labels[~missing]) > 40
    same = torch.zeros(4, 6)
    assert vote_accuracy(same, torch.arange(4), same, torch.arange(4)) == 0  # all draw level


def test_the_vote_is_that_of_the_stage_knn() -> None:
    (bank, known), (queries, labels) = clusters(300, 12, 1), clusters(200, 12, 2)
    features = FeatureBatch(bank[:, None], known, torch.arange(300))
    cosines, classes = find_nearest(queries, features, 20)
    logits = log_votes(cosines, classes, 0.07, 5)
    expected = voted_accuracy(type("P", (), {"logits": logits, "labels": labels})())
    assert vote_accuracy(bank, known, queries, labels) == pytest.approx(expected, abs=1e-9)


def test_every_number_is_that_of_the_features_that_transfer_reads_out(icons: Path) -> None:
    recipe = RECIPES["mae"]
    dataset = PackedDataset(icons, "train")
    method = build_method(recipe, dataset)
    found = measure(method, recipe, dataset, PLAN)
    chosen = choose_images(dataset, 30)
    images = torch.stack([dataset.read_image(i) for i in chosen])
    images = normalise(images, dataset.manifest.mean, dataset.manifest.std)
    labels = torch.from_numpy(dataset.labels[chosen])
    with torch.no_grad():
        features = frozen_features(method.encoder, images, ("cls", "mean"))  # (30, 2, D)
        tokens = method.encoder(images)[:, 1:].double().numpy()  # (30, N, D)
    for place, pooling in enumerate(("cls", "mean")):
        own = features[:, place]
        values = np.linalg.svd(own.double().numpy(), compute_uv=False)
        shares = values / values.sum()
        rank = math.exp(-(shares * np.log(shares)).sum())
        assert found[f"watch/effective_rank_{pooling}"] == pytest.approx(rank, rel=1e-4)
        split = (own[10:], labels[10:], own[:10], labels[:10])
        assert found[f"watch/knn_acc1_{pooling}"] == pytest.approx(vote_accuracy(*split))
        assert found[f"watch/probe_acc1_{pooling}"] == pytest.approx(ridge_accuracy(*split))
    units = tokens / np.linalg.norm(tokens, axis=-1, keepdims=True)
    cosines = units @ units.transpose(0, 2, 1)
    pairs = ~np.eye(16, dtype=bool)
    similarity = cosines[:, pairs].mean()
    assert found["watch/token_similarity"] == pytest.approx(similarity, rel=1e-4)
    assert found[watched.QUERIES] == 10
    assert found.keys() <= {*watched.TITLES, watched.QUERIES}


def test_an_encoder_that_has_broken_is_left_to_the_loop_to_report(icons: Path) -> None:
    recipe, dataset = RECIPES["aee"], PackedDataset(icons, "train")
    method = build_method(recipe, dataset)
    with torch.no_grad():
        method.encoder.norm.bias[0] = float("nan")
    assert measure(method, recipe, dataset, PLAN) == {}


def test_images_are_the_same_for_all_and_fewer_are_the_first_of_more(icons: Path) -> None:
    dataset = PackedDataset(icons, "train")
    chosen = choose_images(dataset, 12)
    torch.manual_seed(5)
    assert choose_images(dataset, 40)[:12] == chosen
    assert sorted(choose_images(dataset, 100)) == list(range(40))
    assert chosen != sorted(chosen)  # classes may come in the order of the images


def test_images_without_classes_have_rank_and_similarity_alone(tmp_path: Path) -> None:
    prepare(Scenes(image_size=16, train=40, test=8), tmp_path, tmp_path, name="scenes")
    dataset = PackedDataset(tmp_path, "train")
    assert not dataset.has_labels
    recipe = RECIPES["aee"]
    found = measure(build_method(recipe, dataset), recipe, dataset, PLAN)
    assert found.keys() == {
        "watch/token_similarity", "watch/effective_rank_cls", "watch/effective_rank_mean",
        watched.DISTANCE, watched.GRADIENT_SHARE,
    }  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_a_method_is_left_as_it_was(name: str, icons: Path) -> None:
    recipe = RECIPES[name]
    dataset = PackedDataset(icons, "train")
    method = build_method(recipe, dataset)
    method.train()
    next(iter(method.encoder.children())).eval()  # a part that never trains, as a teacher
    modes = [module.training for module in method.modules()]
    state = {key: value.clone() for key, value in method.state_dict().items()}

    def draws() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), torch.rand(()).item()

    def seed() -> None:
        random.seed(1), np.random.seed(1), torch.manual_seed(1)

    seed()
    expected = draws()
    seed()
    first = measure(method, recipe, dataset, PLAN)
    assert draws() == expected
    assert measure(method, recipe, dataset, PLAN) == first
    assert [module.training for module in method.modules()] == modes
    assert all(parameter.grad is None for parameter in method.parameters())
    assert all(torch.equal(value, state[key]) for key, value in method.state_dict().items())
    assert (watched.DISTANCE in first) == (name in ("aee", "dle"))


LONG = dataclasses.replace(RECIPES["aee"], epochs=100, batch_size=250, snapshots=4, warmup_epochs=0)


def test_a_plan_is_as_large_as_its_share_of_the_run_allows() -> None:
    plan = plan_watching(LONG, 50_000)
    assert plan == WatchPlan((0, 5000, 10000, 15000, 20000), MOST_IMAGES, 64)
    short = plan_watching(dataclasses.replace(LONG, epochs=2), 50_000)  # 2,000 images to look at
    assert short is not None
    assert short.steps == (0, 100, 200, 300, 400)
    assert 5 * (short.images + ALIGNED_COST * short.aligned) <= BUDGET * 100_000
    shorter = plan_watching(dataclasses.replace(LONG, epochs=1), 50_000)
    assert shorter is not None
    assert shorter.steps == (0, 100, 200)
    assert shorter.images >= LEAST_IMAGES
    assert plan_watching(dataclasses.replace(LONG, epochs=1), 30_000) is None


def test_a_plan_needs_snapshots_and_can_be_declined() -> None:
    assert plan_watching(dataclasses.replace(LONG, snapshots=0), 50_000) is None
    assert plan_watching(dataclasses.replace(LONG, watch=False), 50_000) is None


def test_a_plan_does_not_depend_on_the_method() -> None:
    fields = {"epochs": 3, "snapshots": 4, "batch_size": 250}
    plans = {plan_watching(dataclasses.replace(r, **fields), 50_000) for r in RECIPES.values()}
    assert len(plans) == 1


def train(rank: int, icons: Path, work: Path, recipe: Any, plan: WatchPlan | None) -> None:
    """Train, as one of several processes, and leave a digest of all weights."""
    resources = Resources(device="cpu", checkpoint_minutes=0, log_every_steps=2)
    dataset = PackedDataset(icons, "train")
    with Journal.open(work / f"journal-{rank}") as journal:
        context = RunContext(work / "ckpt", journal, resources)

        def watch(method: Any, step: int = 0) -> None:
            if plan is not None:
                journal.metrics(step, measure(method, recipe, dataset, plan))

        method = pretrain(recipe, icons, context, at_snapshot=watch, at_start=watch)
    digest = hashlib.sha256()
    for name, tensor in sorted(method.state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    (work / f"sha256-{rank}").write_text(digest.hexdigest())


@pytest.mark.parametrize("name", ["dle", "sim", "ibot", "supervised"])
def test_a_watched_run_trains_to_the_same_bits(name: str, icons: Path, tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPES[name], snapshots=3)
    for folder, plan in (("with", PLAN), ("without", None)):
        train(0, icons, tmp_path / folder, recipe, plan)
    first, second = (tmp_path / f"{folder}/sha256-0" for folder in ("with", "without"))
    assert first.read_text() == second.read_text()
    assert [step for step, *_ in points(tmp_path / "with")] == [0, 2, 3, 5]
    assert points(tmp_path / "without") == []


@pytest.mark.distributed
def test_the_first_of_several_processes_measures_and_the_others_wait(
    icons: Path, tmp_path: Path
) -> None:
    recipe = dataclasses.replace(RECIPES["dle"], snapshots=3)
    for folder, plan in (("with", PLAN), ("without", None)):
        (tmp_path / folder).mkdir()
        assert processes(2, train, icons, tmp_path / folder, recipe, plan) == {0}
    digests = {path.read_text() for path in tmp_path.glob("*/sha256-*")}
    assert len(digests) == 1
    assert [step for step, *_ in points(tmp_path / "with")] == [0, 2, 3, 5]
    assert points(tmp_path / "with", rank=1) == []


def points(work: Path, rank: int = 0) -> list[tuple[int, float, int]]:
    return effective_points(work / f"journal-{rank}").get("watch/token_similarity", [])
