"""Probes at a grid: each head as if alone, chosen on held-out images, resumed and shared alike."""

import dataclasses
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from process_groups import STOPPED, processes
from torch import Tensor

from asl_core.data import layout
from asl_core.data.prepare import prepare
from asl_core.data.shards import PackedDataset
from asl_core.engine.context import RunContext
from asl_core.engine.journal import Journal
from asl_core.errors import InputError
from asl_core.modules.encoder import Encoder, load_encoder, save_encoder
from asl_core.recipes.attentive import AttentiveProbe
from asl_core.recipes.datasets import Icons
from asl_core.recipes.models import Vit
from asl_core.recipes.optimisation import Resources
from asl_core.recipes.transfer import LinearProbe
from asl_core.transfer.attentive import attentive_probe
from asl_core.transfer.attentive_heads import AttentiveHead
from asl_core.transfer.choice import draw_order, edge_of, first_best, split_held_out
from asl_core.transfer.feature_files import columns, split_features
from asl_core.transfer.features import frozen_features
from asl_core.transfer.linear_heads import ProbeHeads, heads_of
from asl_core.transfer.linprobe import ProbeResult, linprobe
from asl_core.transfer.probe_step import Progress, has_converged
from asl_core.transfer.probe_training import FeatureProbe, fit_on_features, images_to_train_on

VIT = Vit(
    image_size=16, patch_size=8, embed_dim=8, depth=4, num_heads=2,
    decoder_embed_dim=12, decoder_depth=1, decoder_num_heads=2,
)  # fmt: skip
CPU = Resources(device="cpu", threads=1)
SHORT: dict[str, Any] = {
    "dataset": "icons", "epochs": 10, "batch_size": 24, "warmup_epochs": 1, "augment": False,
    "precision": "fp32", "held_out": 0.25,
}  # fmt: skip
GRID = LinearProbe(**SHORT, grid_rates=(1.6, 6.4, 25.6))
ATTENTIVE = AttentiveProbe(**SHORT, queries=4, grid_rates=(1.6, 25.6))
Parity = Callable[[str, Tensor, Tensor, float], None]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("probes") / "icons"
    prepare(Icons(image_size=16, train=80, test=30), folder, folder, name="icons")
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    save_encoder(folder, Encoder(VIT).state_dict(), VIT)
    return folder


def probe(
    work: Path, recipe: LinearProbe, encoder: Path, data: Path, features: Path | None = None
) -> tuple[ProbeHeads, ProbeResult]:
    with Journal.open(work / "journal") as journal:
        return linprobe(recipe, encoder, data, RunContext(work / "ckpt", journal, CPU), features)


def of_head(state: dict[str, Tensor], module: str, place: int) -> dict[str, Tensor]:
    """What belongs to one head: its Linear, and the statistics of its BatchNorm."""
    wanted = (f"{module}.linears.{place}.", f"{module}.norm.")
    return {
        name.replace(f"linears.{place}", "linears.0"): tensor
        for name, tensor in state.items()
        if name.startswith(wanted)
    }


@pytest.mark.parametrize(
    ("optimizer", "augment"), [("lars", False), ("lars", True), ("adamw", False)]
)
def test_each_head_of_a_grid_is_what_it_would_be_alone(
    optimizer: str, augment: bool, data: Path, encoder: Path, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"optimizer": optimizer, "augment": augment}
    grid = dataclasses.replace(GRID, **changes)
    heads, together = probe(tmp_path / "grid", grid, encoder, data)
    assert len(heads_of(grid)) == 3 * 3 * 2
    for pooling, blocks, place in (("cls", 1, 0), ("mean", 4, 2), ("both", 1, 1), ("both", 4, 2)):
        rate = grid.grid_rates[place]
        only = dataclasses.replace(
            grid, grid_rates=(rate,), grid_poolings=(pooling,), grid_blocks=(blocks,)
        )
        alone_heads, alone = probe(tmp_path / f"{pooling}{blocks}", only, encoder, data)
        module = f"{pooling}{blocks}"
        torch.testing.assert_close(
            of_head(heads.state_dict(), module, place), alone_heads.state_dict(), rtol=0, atol=0
        )
        assert together.held_out[f"{module}-{place}"] == alone.held_out[f"{module}-0"]
        column = [head.name for head in heads_of(grid)].index(f"{module}-{place}")
        assert torch.equal(together.training[:, column], alone.training[:, 0])


def test_heads_of_one_input_differ_by_their_rate_alone(data: Path, encoder: Path) -> None:
    heads = ProbeHeads(GRID, 8, 10)
    first, *others = heads["both4"].linears
    assert first.weight.shape == (10, 2 * 4 * 8)
    assert all(torch.equal(first.weight, other.weight) for other in others)
    groups = heads.groups(GRID)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert len(rates) == len([*heads.parameters()])
    for module in heads.values():
        assert [rates[id(linear.weight)] for linear in module.linears] == list(GRID.grid_rates)


def test_a_head_reads_the_blocks_and_poolings_of_its_name() -> None:
    recipe = dataclasses.replace(GRID, grid_poolings=("mean", "both"))
    heads = ProbeHeads(recipe, 2, 3)
    assert heads.poolings == ("cls", "mean")
    features = torch.arange(16.0).reshape(1, 8, 2)  # [cls] of four blocks, then the means
    seen = {h.name: heads._vectors(features, h).tolist() for h in heads_of(recipe) if h.rate == 1.6}
    assert seen["mean1-0"] == [[8, 9]]
    assert seen["both1-0"] == [[0, 1, 8, 9]]
    assert seen["mean4-0"] == [[8, 9, 10, 11, 12, 13, 14, 15]]
    assert seen["both4-0"] == [[*range(16)]]


def test_features_of_earlier_blocks_are_treated_as_those_of_the_last(encoder: Path) -> None:
    model = load_encoder(encoder).eval()
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        layers = model.layers(images)
        found = frozen_features(model, images, ("cls", "mean"), 3)
        last = frozen_features(model, images, ("cls", "mean"))
    assert torch.equal(found[:, [0, 3]], last)
    for block, tokens in enumerate(reversed(layers[1:])):
        mean = tokens[:, 1:].mean(1)
        normed = (mean - mean.mean(1, True)) / (mean.var(1, unbiased=False)[:, None] + 1e-6).sqrt()
        torch.testing.assert_close(found[:, block], model.norm(tokens[:, 0]).detach())
        torch.testing.assert_close(found[:, 3 + block], normed, rtol=1e-5, atol=1e-6)


def shift_labels(data: Path, target: Path, split: str) -> Path:
    """Copy a dataset with other labels in one split."""
    shutil.copytree(data, target)
    path = target / layout.INDEX.format(split=split)
    with np.load(path) as archive:
        index = dict(archive)
    index["label"] = (index["label"] + 3) % 10
    np.savez(path, **index)
    return target


def test_the_choice_does_not_depend_on_test_labels(
    data: Path, encoder: Path, tmp_path: Path
) -> None:
    other = shift_labels(data, tmp_path / "other", "test")
    _, one = probe(tmp_path / "one", GRID, encoder, data)
    _, two = probe(tmp_path / "two", GRID, encoder, other)
    assert (one.chosen, one.by_pooling, one.held_out) == (two.chosen, two.by_pooling, two.held_out)
    best = max(one.held_out.values())
    assert one.held_out[one.chosen.name] == best
    assert one.chosen.name == next(n for n, accuracy in one.held_out.items() if accuracy == best)
    ours, theirs = (result.predictions[one.chosen.name] for result in (one, two))
    assert torch.equal(ours.logits, theirs.logits)
    assert not torch.equal(ours.labels, theirs.labels)
    assert {*one.predictions} == {head.name for head in one.by_pooling.values()}


def test_images_held_out_are_not_trained_on(data: Path, encoder: Path, tmp_path: Path) -> None:
    train = PackedDataset(data, "train")
    kept, held = split_held_out(train, 0.25, GRID.seed)
    assert images_to_train_on(GRID, train) == kept.tolist()
    assert len(images_to_train_on(dataclasses.replace(GRID, grid_rates=()), train)) == 80
    rows = split_features(
        load_encoder(encoder), train, precision="fp32", resources=CPU, folder=None
    )
    poisoned = rows._replace(features=rows.features.index_fill(0, held, torch.nan))
    states = []
    for name, each in (("rows", rows), ("poisoned", poisoned)):
        heads = ProbeHeads(GRID, 8, 10)
        with Journal.open(tmp_path / name / "journal") as journal:
            context = RunContext(tmp_path / name / "ckpt", journal, CPU)
            fit_on_features(
                GRID, heads, train, each, context, columns(heads.poolings, heads.blocks, 4)
            )
        states.append(heads.state_dict())
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)
    assert all(bool(tensor.isfinite().all()) for tensor in states[0].values())


def test_the_share_of_each_class_is_held_out_whatever_else_is_there() -> None:
    labels = torch.tensor([0] * 20 + [1] * 4 + [2])
    places = draw_order(labels, 0, "held_out")
    for label in range(3):
        own = places[labels == label]
        assert sorted(own.tolist()) == list(range(len(own)))
    assert not torch.equal(places, draw_order(labels, 1, "held_out"))
    # a draw is an image's own: other images of other classes move nobody
    longer = torch.cat([labels, torch.full((9,), 2)])
    assert torch.equal(draw_order(longer, 0, "held_out")[:24], places[:24])


def test_ties_go_to_the_first_and_edges_are_known() -> None:
    assert first_best([1.0, 3.0, 3.0]) == 1
    assert first_best([0.0, 0.0]) == 0
    assert [edge_of(rate, GRID.grid_rates) for rate in GRID.grid_rates] == [-1, 0, 1]
    assert edge_of(6.4, (6.4,)) == 0


@pytest.mark.parametrize(
    ("fields", "rate", "training", "test", "converged"),
    [
        ({}, 6.4, (50.0, 51.9), 46.0, True),
        ({}, 25.6, (50.0, 50.0), 46.0, False),  # the largest rate
        ({}, 1.6, (50.0, 50.0), 51.0, True),
        ({}, 6.4, (50.0, 53.0), 46.0, False),  # still rising
        ({"grid_rates": ()}, 0.2, (27.4, 27.5), 27.9, False),  # knows its own images no better
        ({"grid_rates": ()}, 0.2, (27.4, 27.5), 27.4, True),
        ({"grid_rates": (), "augment": True}, 0.2, (27.4, 27.5), 27.9, True),
        ({"grid_rates": (6.4,)}, 6.4, (50.0, 50.0), 46.0, True),
        ({}, 6.4, (float("nan"), float("nan")), 46.0, True),  # fewer than ten steps
    ],
)
def test_convergence_follows_its_written_rule(
    fields: dict[str, Any], rate: float, training: tuple[float, float], test: float, converged: bool
) -> None:
    recipe = dataclasses.replace(GRID, **fields)
    assert has_converged(recipe, rate, torch.tensor(training), test) is converged


def test_training_accuracy_is_that_of_the_last_two_tenths() -> None:
    progress = Progress(2, 30)
    assert [progress.tenth(step) for step in (0, 23, 24, 26, 27, 29, 30)] == [
        None, None, 0, 0, 1, 1, None,
    ]  # fmt: skip
    labels = torch.tensor([0, 1, 1, 0])
    right = torch.eye(2)[labels]
    half = torch.eye(2)[torch.tensor([0, 1, 0, 1])]
    for step in range(30):
        scores = [right, half if step < 27 else right]
        progress.add(progress.statistics(scores, labels, step))
    assert progress.accuracies.tolist() == [[100.0, 50.0], [100.0, 100.0]]
    assert bool(Progress(1, 5).accuracies.isnan().all())


def resumed(
    rank: int, work: Path, recipe: Any, encoder: Path, data: Path, stop_at: int | None
) -> None:
    """Probe, stopping itself after a step; leave heads, training accuracy, scores, the choice."""

    def after_step(self: FeatureProbe, step: int) -> None:
        if step == stop_at:
            os.kill(os.getpid(), signal.SIGUSR1)

    FeatureProbe.after_step = after_step  # type: ignore[attr-defined]
    with Journal.open(work / f"journal-{rank}") as journal:
        context = RunContext(work / "ckpt", journal, CPU)
        if isinstance(recipe, LinearProbe):
            heads, result = linprobe(recipe, encoder, data, context, work / "features")
            scores = result.predictions[result.chosen.name].logits
            left = (heads.state_dict(), result.training, scores, result.held_out)
        else:
            heads, found = attentive_probe(recipe, encoder, data, context)
            left = (heads.state_dict(), found.training, found.predictions.logits, found.held_out)
    torch.save(left, work / f"probe-{rank}.pt")


@pytest.mark.distributed
@pytest.mark.parametrize("recipe", [GRID, ATTENTIVE], ids=["linear", "attentive"])
def test_a_stop_changes_nothing_and_two_processes_find_what_one_does(
    recipe: Any, encoder: Path, data: Path, tmp_path: Path
) -> None:
    found = {}
    for name, world_size, stops in (
        ("one", 1, [None]), ("one stopped", 1, [17, None]),
        ("two", 2, [None]), ("two stopped", 2, [17, None]),
    ):  # fmt: skip
        for stop in stops:
            codes = processes(world_size, resumed, tmp_path / name, recipe, encoder, data, stop)
            assert codes == ({0} if stop is None else {STOPPED})
        ranks = [torch.load(tmp_path / name / f"probe-{rank}.pt") for rank in range(world_size)]
        for other in ranks[1:]:
            torch.testing.assert_close(other, ranks[0], rtol=0, atol=0)
        found[name] = ranks[0]
    for name in ("one", "two"):
        torch.testing.assert_close(found[f"{name} stopped"], found[name], rtol=0, atol=0)
    (one, *_), (two, *_) = found["one"], found["two"]
    torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)


def share(rank: int, encoder: Path, data: Path, work: Path, features: Path | None) -> None:
    for module in ("features", "feature_files"):
        __import__(f"asl_core.transfer.{module}", fromlist=["CHUNK"]).CHUNK = 32
    rows = split_features(
        load_encoder(encoder), PackedDataset(data, "train"), precision="bf16", resources=CPU,
        folder=features,
    )  # fmt: skip
    torch.save((rows.features.clone(), rows.labels), work / f"rows-{rank}.pt")


@pytest.mark.distributed
def test_shared_features_are_the_same_from_memory_and_disk_after_a_kill_and_by_three_processes(
    encoder: Path, data: Path, tmp_path: Path
) -> None:
    found = []
    for name, world_size, features in (
        ("memory", 1, None), ("disk", 1, tmp_path / "f1"), ("three", 3, tmp_path / "f3"),
        ("again", 2, tmp_path / "f1"),
    ):  # fmt: skip
        work = tmp_path / name
        work.mkdir()
        if name == "again":  # as a kill leaves it: a chunk that was not finished
            (key,) = features.iterdir()
            (key / "done-00000032").unlink()
            with (key / "features.bin").open("r+b") as file:
                file.seek(32 * 8 * 8 * 2)
                file.write(b"\0" * 64)
        assert processes(world_size, share, encoder, data, work, features) == {0}
        found += [torch.load(path) for path in sorted(work.glob("rows-*"))]
    rows, labels = found[0]
    assert (rows.shape, rows.dtype) == ((80, 8, 8), torch.float16)
    assert torch.equal(labels, torch.from_numpy(PackedDataset(data, "train").labels))
    for other, _ in found[1:]:
        assert torch.equal(other, rows)


def test_features_that_are_there_are_read_and_others_have_a_place_of_their_own(
    encoder: Path, data: Path, tmp_path: Path
) -> None:
    def rows_of(model: Encoder, split: str = "train", precision: str = "fp32") -> Tensor:
        dataset = PackedDataset(data, split)
        return split_features(
            model, dataset, precision=precision, resources=CPU, folder=tmp_path
        ).features

    model = load_encoder(encoder)
    first = rows_of(model).clone()
    (key,) = tmp_path.iterdir()
    content = bytearray((key / "features.bin").read_bytes())
    content[:4] = np.float32(7).tobytes()
    (key / "features.bin").write_bytes(content)
    assert rows_of(model)[0, 0, 0] == 7  # read, not computed again
    rows_of(model, "test")
    rows_of(model, precision="bf16")
    with torch.no_grad():
        model.norm.bias += 1
    assert not torch.equal(rows_of(model), first)
    assert len([*tmp_path.iterdir()]) == 4


def test_attention_pools_as_numpy_does_in_float64(parity: Parity) -> None:
    head = AttentiveHead(12, 5, 3, seed=0).double()
    torch.nn.init.normal_(head.queries, generator=torch.Generator().manual_seed(1))
    patches = torch.randn(4, 7, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x, q = patches.numpy(), head.queries.detach().numpy()
    v = x @ head.values.weight.detach().numpy().T  # (B, N, D): values first, as published
    expected = np.empty((4, 12))
    for image in range(4):
        for query in range(3):
            logits = x[image] @ q[query] / np.sqrt(12)
            weights = np.exp(logits - logits.max())
            part = slice(4 * query, 4 * query + 4)
            expected[image, part] = (weights / weights.sum()) @ v[image][:, part]
    parity("attentive pooling", head.pool(patches), torch.from_numpy(expected), 1e-12)


def test_an_attentive_grid_trains_each_rate_as_alone_and_chooses_on_held_out_images(
    encoder: Path, data: Path, tmp_path: Path
) -> None:
    def run(name: str, recipe: AttentiveProbe, dataset: Path) -> Any:
        with Journal.open(tmp_path / name / "journal") as journal:
            context = RunContext(tmp_path / name / "ckpt", journal, CPU)
            return attentive_probe(recipe, encoder, dataset, context)

    heads, result = run("grid", ATTENTIVE, data)
    assert result.place == first_best(result.held_out)
    for i, rate in enumerate(ATTENTIVE.grid_rates):
        alone, found = run(f"a{i}", dataclasses.replace(ATTENTIVE, grid_rates=(rate,)), data)
        torch.testing.assert_close(
            heads[f"rate{i}"].state_dict(), alone["rate0"].state_dict(), rtol=0, atol=0
        )
        assert found.held_out == [result.held_out[i]]
    other = shift_labels(data, tmp_path / "other", "test")
    assert run("other", ATTENTIVE, other)[1].held_out == result.held_out
    with pytest.raises(InputError, match="queries 3 does not divide the width 8"):
        run("odd", dataclasses.replace(ATTENTIVE, queries=3), data)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"grid_rates": (2.0, 1.0)}, "grid_rates must be positive and grow"),
        ({"lr": 1.0}, "lr has no effect beside grid_rates"),
        ({"held_out": 1.0}, r"held_out must be in \(0, 1\)"),
        ({"pooling": "mean"}, "no effect beside grid_rates; use grid_poolings"),
        ({"both_poolings": True}, "no effect beside grid_rates"),
        ({"grid_poolings": ()}, "grid_poolings needs at least one value"),
        ({"grid_blocks": (1, 1)}, "none twice"),
        ({"clip_grad": 1.0}, "by their common norm; with grid_rates set"),
    ],
)
def test_grids_that_make_no_sense_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(GRID, **fields)


def test_what_cannot_be_held_out_or_read_is_said(data: Path, encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="less than half an image"):
        probe(tmp_path / "few", dataclasses.replace(GRID, held_out=0.01), encoder, data)
    shallow = tmp_path / "shallow"
    shallow.mkdir()
    vit = dataclasses.replace(VIT, depth=2)
    save_encoder(shallow, Encoder(vit).state_dict(), vit)
    with pytest.raises(InputError, match="grid_blocks 4 exceeds the 2 blocks"):
        probe(tmp_path / "deep", GRID, shallow, data)
