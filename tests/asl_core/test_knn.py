"""k nearest neighbours, beside scikit-learn's."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from miniatures import TINY
from process_groups import processes
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn

from asl_core.data.prepare import prepare
from asl_core.data.shards import PackedDataset
from asl_core.errors import InputError
from asl_core.modules.encoder import Encoder, load_encoder, save_encoder
from asl_core.recipes.datasets import Icons, Scenes
from asl_core.recipes.knn import NearestNeighbours
from asl_core.recipes.optimisation import Resources
from asl_core.transfer import knn
from asl_core.transfer.choice import split_held_out
from asl_core.transfer.classification import Predictions
from asl_core.transfer.features import FeatureBatch, extract_features
from asl_core.transfer.knn import (
    classify_by_neighbours,
    find_nearest,
    log_votes,
    voted_accuracy,
)

CPU = Resources(device="cpu")
Parity = Callable[[str, Tensor, Tensor, float], None]


def write_encoder(folder: Path, change: Callable[[Encoder], object] = lambda _: None) -> Path:
    torch.manual_seed(0)
    encoder = Encoder(TINY)
    nn.init.normal_(encoder.norm.weight)  # a trained norm is not 1 and 0
    with torch.no_grad():
        change(encoder)
    folder.mkdir()
    save_encoder(folder, encoder.state_dict(), TINY)
    return folder


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    return write_encoder(tmp_path / "encoder")


def drawn(images: int, seed: int) -> FeatureBatch:
    """Features of 7 numbers, 6 classes of which the last is nobody's."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(images, 1, 7, generator=generator)
    return FeatureBatch(
        features, torch.randint(0, 5, (images,), generator=generator), torch.arange(images)
    )


def sklearns(train: FeatureBatch, k: int, temperature: float) -> Any:
    model = KNeighborsClassifier(
        k, metric="cosine", weights=lambda distance: np.exp(-distance / temperature)
    )
    return model.fit(train.features[:, 0].double().numpy(), train.labels.numpy())


@pytest.mark.parametrize("chunk", [1, 9, 4096])
@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (11, 0.07), (150, 0.5)])
def test_neighbours_and_votes_are_those_of_scikit_learn(
    k: int, temperature: float, chunk: int, monkeypatch: pytest.MonkeyPatch, parity: Parity
) -> None:
    monkeypatch.setattr(knn, "CHUNK", chunk)
    train, test = drawn(150, 0), drawn(23, 1)
    queries = test.features[:, 0]
    theirs = sklearns(train, k, temperature)
    cosines, labels = find_nearest(queries, train, k)
    distances, nearest = theirs.kneighbors(queries.double().numpy())
    assert torch.equal(labels, train.labels[torch.from_numpy(nearest)])
    parity("k-NN: cosines", 1 - cosines, torch.from_numpy(distances), 1e-12)
    votes = log_votes(cosines, labels, temperature, num_classes=6).exp()
    expected = torch.from_numpy(theirs.predict_proba(queries.double().numpy()))  # of 5 classes
    parity("k-NN: shares of the votes", votes[:, :5], expected, 1e-12)
    assert (votes[:, 5] == 0).all()


def test_at_a_high_temperature_every_neighbour_has_one_vote() -> None:
    cosines = torch.tensor([[0.9, 0.8, 0.1, -1.0]], dtype=torch.float64)
    shares = log_votes(cosines, torch.tensor([[2, 0, 2, 2]]), 1e12, num_classes=4).exp()
    torch.testing.assert_close(shares, torch.tensor([[0.25, 0.0, 0.75, 0.0]]).double())


def test_a_temperature_near_zero_leaves_the_nearest_alone() -> None:
    cosines = torch.tensor([[0.9, 0.8, 0.7]], dtype=torch.float64)
    logits = log_votes(cosines, torch.tensor([[1, 0, 0]]), 1e-6, num_classes=2)
    assert logits.tolist() == [[-torch.inf, 0.0]]


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_predictions_are_those_of_scikit_learn_on_the_features(
    pooling: str, icons: Path, encoder: Path, parity: Parity
) -> None:
    recipe = NearestNeighbours(dataset="icons", k=7, pooling=pooling)  # type: ignore[arg-type]
    predictions = classify_by_neighbours(recipe, encoder, icons, CPU).predictions
    train, test = (
        extract_features(
            load_encoder(encoder), PackedDataset(icons, split), poolings=(pooling,),
            precision="fp32", resources=CPU,
        )
        for split in ("train", "test")
    )  # fmt: skip
    theirs = sklearns(train, 7, 0.07)
    expected = theirs.predict_proba(test.features[:, 0].double().numpy())
    assert theirs.classes_.tolist() == list(range(10))
    ours = predictions.logits.double().exp()
    parity("k-NN: shares of the votes, icons", ours, torch.from_numpy(expected), 1e-6)
    assert predictions.indices.tolist() == list(range(16))
    right = theirs.score(test.features[:, 0].double().numpy(), test.labels.numpy())
    assert voted_accuracy(predictions) == pytest.approx(100 * right)
    voted = [
        label in sorted(range(10), key=lambda c: -shares[c])[:5] and shares[label] > 0
        for label, shares in zip(test.labels.tolist(), expected, strict=True)
    ]
    assert voted_accuracy(predictions, 5) == pytest.approx(100 * sum(voted) / 16)
    again = classify_by_neighbours(recipe, encoder, icons, CPU).predictions
    assert torch.equal(again.logits, predictions.logits)


def test_voters_and_pooling_are_chosen_on_held_out_images_and_all_training_images_vote(
    icons: Path, encoder: Path
) -> None:
    recipe = NearestNeighbours(dataset="icons", grid_k=(1, 3, 9), held_out=0.25, seed=4)
    vote = classify_by_neighbours(recipe, encoder, icons, CPU)
    train = PackedDataset(icons, "train")
    kept, held = split_held_out(train, 0.25, 4)
    rows = extract_features(
        load_encoder(encoder), train, poolings=("cls", "mean"), precision="fp32", resources=CPU
    )
    for i, pooling in enumerate(("cls", "mean")):
        bank, queries = (
            FeatureBatch(rows.features[part, i : i + 1], rows.labels[part], rows.indices[part])
            for part in (kept, held)
        )
        for k in (1, 3, 9):
            theirs = sklearns(bank, k, 0.07)
            shares = torch.zeros(len(held), 10, dtype=torch.float64)
            found = theirs.predict_proba(queries.features[:, 0].double().numpy())
            shares[:, torch.from_numpy(theirs.classes_)] = torch.from_numpy(found)
            expected = voted_accuracy(Predictions(held, queries.labels, shares.log()))
            assert vote.held_out[pooling, k] == pytest.approx(expected)
    best = max(vote.held_out.values())
    assert (vote.pooling, vote.k) == next(c for c, found in vote.held_out.items() if found == best)
    assert next(iter(vote.by_pooling)) == vote.pooling
    single = NearestNeighbours(dataset="icons", k=vote.k, pooling=vote.pooling)  # type: ignore[arg-type]
    alone = classify_by_neighbours(single, encoder, icons, CPU)
    assert torch.equal(alone.predictions.logits, vote.predictions.logits)
    assert alone.held_out == {}


def test_more_voters_than_are_not_held_out_are_refused(icons: Path, encoder: Path) -> None:
    recipe = NearestNeighbours(dataset="icons", grid_k=(10, 35), held_out=0.25)
    with pytest.raises(InputError, match="training images of icons that are not held out"):
        classify_by_neighbours(recipe, encoder, icons, CPU)


def test_neither_silence_nor_a_draw_is_an_answer() -> None:
    no = -torch.inf
    logits = torch.tensor(
        [[no, 0.0, no], [-0.7, -0.7, no], [-0.7, no, -0.7], [-0.2, -1.0, -3.0]]
    )  # fmt: skip
    predictions = Predictions(torch.arange(4), torch.tensor([1, 1, 1, 2]), logits)
    assert voted_accuracy(predictions, 1) == 25.0
    assert voted_accuracy(predictions, 2) == 50.0
    assert voted_accuracy(predictions, 5) == 75.0


def vote(rank: int, recipe: NearestNeighbours, encoder: Path, data: Path, work: Path) -> None:
    knn.CHUNK = 12  # images of all processes together
    predictions = classify_by_neighbours(recipe, encoder, data, CPU).predictions
    torch.save((predictions.indices, predictions.logits), work / f"votes-{rank}.pt")


@pytest.mark.distributed
def test_several_processes_vote_like_one_with_fewer_images_than_processes(
    encoder: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    prepare(Icons(image_size=16, train=40, test=5), data, data, name="icons")
    recipe = NearestNeighbours(dataset="icons", k=9)
    found = []
    for world_size in (1, 3, 7):
        work = tmp_path / str(world_size)
        work.mkdir()
        assert processes(world_size, vote, recipe, encoder, data, work) == {0}
        found += [torch.load(path) for path in sorted(work.glob("votes-*"))]
    assert len(found) == 1 + 3 + 7
    for indices, logits in found:
        assert indices.tolist() == [0, 1, 2, 3, 4]
        torch.testing.assert_close(logits, found[0][1])


def blind(encoder: Encoder) -> None:
    """Let all images look alike."""
    encoder.patch_embed.proj.weight.zero_()


def broken(encoder: Encoder) -> None:
    encoder.norm.weight.fill_(torch.nan)


def test_of_equal_images_the_first_of_the_split_votes_in_any_order_and_chunk(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    one, other, query = torch.randn(3, 8)
    rows = torch.stack([one, other, one, other, one])[:, None]
    bank = FeatureBatch(rows, torch.arange(5), torch.arange(5))
    for order in ([0, 1, 2, 3, 4], [4, 2, 0, 3, 1]):
        for chunk in (1, 2, 4096):
            monkeypatch.setattr(knn, "CHUNK", chunk)
            shuffled = FeatureBatch(*(tensor[order] for tensor in bank))
            _, labels = find_nearest(one[None] + 1e-9 * query[None], shuffled, 2)
            assert labels.tolist() == [[0, 2]]


def test_an_encoder_that_tells_images_apart_by_nothing_is_judged_by_the_first_images(
    icons: Path, tmp_path: Path
) -> None:
    encoder = write_encoder(tmp_path / "encoder", blind)
    recipe = NearestNeighbours(dataset="icons", k=4)
    predictions = classify_by_neighbours(recipe, encoder, icons, CPU).predictions
    assert len({tuple(row) for row in predictions.logits.tolist()}) == 1


def test_features_that_are_not_finite_are_refused(icons: Path, tmp_path: Path) -> None:
    encoder = write_encoder(tmp_path / "encoder", broken)
    with pytest.raises(InputError, match="features that are not finite; look at") as said:
        classify_by_neighbours(NearestNeighbours(dataset="icons", k=4), encoder, icons, CPU)
    assert "\n" not in str(said.value)


def refuse(rank: int, encoder: Path, data: Path) -> None:
    with pytest.raises(InputError, match="not finite"):
        classify_by_neighbours(NearestNeighbours(dataset="icons", k=4), encoder, data, CPU)


@pytest.mark.distributed
def test_all_processes_refuse_what_one_cannot_use(icons: Path, tmp_path: Path) -> None:
    assert processes(2, refuse, write_encoder(tmp_path / "encoder", broken), icons) == {0}


def test_all_training_images_may_vote_but_no_more(icons: Path, encoder: Path) -> None:
    classify_by_neighbours(NearestNeighbours(dataset="icons", k=40), encoder, icons, CPU)
    with pytest.raises(InputError, match=r"k 41 exceeds the 40 training images of icons; choose"):
        classify_by_neighbours(NearestNeighbours(dataset="icons", k=41), encoder, icons, CPU)


def test_a_dataset_without_labels_is_refused(encoder: Path, tmp_path: Path) -> None:
    scenes = tmp_path / "scenes"
    prepare(Scenes(image_size=16, train=4, test=2), scenes, scenes, name="scenes")
    with pytest.raises(InputError, match="no labels; choose one with labels"):
        classify_by_neighbours(NearestNeighbours(dataset="scenes", k=1), encoder, scenes, CPU)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"k": 0}, "k must be at least 1, got 0"),
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ({"image_size": 0}, "image_size must be at least 1, got 0"),
        ({"grid_k": (20, 10)}, "grid_k must be at least 1 and grow"),
        ({"grid_k": (10,), "pooling": "mean"}, "pooling has no effect beside grid_k"),
        ({"held_out": 0.0}, r"held_out must be in \(0, 1\)"),
    ],
)
def test_recipes_refuse_values_that_make_no_sense(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NearestNeighbours(dataset="icons", **fields)
