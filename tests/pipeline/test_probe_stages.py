"""The stages that probe encoders, from a packed dataset to files, metrics, columns and notes."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from asl_core.data.prepare import prepare
from asl_core.engine.journal import Journal
from asl_core.errors import InputError
from asl_core.modules.encoder import Encoder, save_encoder
from asl_core.recipes.attentive import AttentiveProbe
from asl_core.recipes.datasets import Icons
from asl_core.recipes.fewshot import FewShot
from asl_core.recipes.models import Vit
from asl_core.recipes.optimisation import Resources
from asl_core.recipes.transfer import LinearProbe
from asl_core.transfer.linear_heads import heads_of
from pipeline.stages import attentive, fewshot, linprobe
from pipeline.stages.request import StageRequest, StoredRun
from pipeline.stages.table import STAGES
from pipeline.tables.layout import lay_out
from pipeline.tables.paper import load_paper
from pipeline.tables.render import notes

VIT = Vit(image_size=16, patch_size=8, embed_dim=24, depth=4, num_heads=3,
          decoder_embed_dim=16, decoder_num_heads=4)  # fmt: skip
CPU = Resources(device="cpu", threads=1)
SHORT: dict[str, Any] = {
    "dataset": "icons", "epochs": 12, "batch_size": 24, "warmup_epochs": 1, "augment": False,
    "precision": "fp32",
}  # fmt: skip
GRID = LinearProbe(**SHORT, grid_rates=(1.6, 6.4), grid_blocks=(1, 4))
ATTENTIVE = AttentiveProbe(**SHORT, queries=8, grid_rates=(1.6, 6.4))
FEW = FewShot(dataset="icons", shots=(2,), percent=(50,), draws=2)
PROGRESS = ("train_acc1", "train_rise", "converged", "rate", "rate_at_edge", "held_out_acc1")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("inputs")
    (root / "encoder").mkdir()
    prepare(Icons(image_size=16, train=60, test=20), root / "icons", root / "icons", name="icons")
    torch.manual_seed(0)
    save_encoder(root / "encoder", Encoder(VIT).state_dict(), VIT)
    return {"dataset": root / "icons", "encoder": root / "encoder"}


@pytest.mark.parametrize(
    ("stage", "recipe", "expected"),
    [
        (linprobe, GRID, {
            "lp_acc1", "lp_acc5", "lp_acc1_cls", "lp_acc1_mean", "lp_acc1_both", "lp_blocks",
            *(f"lp_{name}" for name in PROGRESS),
        }),
        (linprobe, LinearProbe(**SHORT), {
            "lp_acc1", "lp_acc5", *(f"lp_{name}" for name in PROGRESS[:3]),
        }),
        (attentive, ATTENTIVE, {
            "attentive_acc1", "attentive_acc5", *(f"attentive_{name}" for name in PROGRESS),
        }),
        (fewshot, FEW, {
            "fewshot_acc1_2shot", "fewshot_std_2shot", "fewshot_acc1_50pct", "fewshot_std_50pct",
            "fewshot_converged",
        }),
    ],
    ids=["grid", "published", "attentive", "fewshot"],
)  # fmt: skip
def test_a_stage_returns_its_metrics_and_finds_them_again_in_what_it_stored(
    stage: Any, recipe: Any, expected: set[str], inputs: dict[str, Path], tmp_path: Path
) -> None:
    name = stage.__name__.rpartition(".")[2]
    out = tmp_path / "out"
    out.mkdir()
    with Journal.open(tmp_path / "work/journal") as journal:
        request = StageRequest(
            stage=name, key="mae", recipe=recipe, inputs=inputs, work=tmp_path / "work",
            outputs={"details": out}, journal=journal, resources=CPU, features=tmp_path / "shared",
        )  # fmt: skip
        metrics = stage.run(request)
    assert {*metrics} == expected
    assert {path.stem for path in (out / "pictures").iterdir()} == {*STAGES[name].captions}
    assert next(iter(STAGES[name].headline)) in {*metrics, "fewshot_acc1_1pct"}
    assert STAGES[name].reads_features is (tmp_path / "shared").exists()
    again = stage.reevaluate(StoredRun(recipe, out, inputs, CPU))
    assert again == metrics
    if stage is not fewshot:
        heads = json.loads((out / "heads.json").read_text())
        (chosen,) = (head for head in heads if head["chosen"])
        assert chosen["train_acc1"] == metrics[f"{'lp' if stage is linprobe else name}_train_acc1"]
        if recipe is GRID:
            assert len(heads) == len(heads_of(GRID)) == 12
            assert chosen["held_out_acc1"] == max(head["held_out_acc1"] for head in heads)
            assert metrics[f"lp_acc1_{chosen['pooling']}"] == metrics["lp_acc1"]
        weights = out / "probe.safetensors"
        weights.write_bytes(weights.read_bytes()[:100])
        with pytest.raises(InputError, match=r"cannot read .*probe.safetensors"):
            stage.reevaluate(StoredRun(recipe, out, inputs, CPU))


def test_the_log_says_what_is_unfinished(
    inputs: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    slow = LinearProbe(**SHORT, grid_rates=(1e-6, 2e-6))
    with Journal.open(tmp_path / "work/journal") as journal, caplog.at_level(logging.WARNING):
        metrics = linprobe.run(
            StageRequest(
                "linprobe", "mae", slow, inputs, tmp_path / "work", {"details": out}, journal, CPU
            )
        )
    # hardly moved, all heads of a kind are alike: the first is chosen
    assert (metrics["lp_rate"], metrics["lp_rate_at_edge"]) == (1e-6, -1.0)
    assert "linprobe mae: the best of grid_rates is the smallest, 1e-06" in caplog.text


def measured(results: Any, key: str, **more: float) -> None:
    results.result(
        "linprobe", key, lp_acc1=46.0, lp_acc1_cls=44.6, lp_acc1_mean=43.9, lp_train_acc1=49.7,
        lp_train_rise=1.9, **more,
    )  # fmt: skip


def test_tables_show_poolings_and_say_how_heads_were_chosen_and_which_are_unfinished(
    results: Any,
) -> None:
    params = (results.folder / "params.yaml").read_text()
    section = params[params.index("linprobe:") : params.index("finetune:")]
    grid = "{dataset: icons, grid_rates: [1.6, 6.4]}"
    results.edit(section, f"linprobe:\n  mae: {grid}\n  asl: {grid}\n")
    measured(results, "mae", lp_converged=1.0, lp_rate=1.6, lp_rate_at_edge=-1.0)
    measured(results, "asl", lp_converged=0.0, lp_rate=6.4, lp_rate_at_edge=1.0)
    (table,) = lay_out(results.suite, load_paper())
    headers = [heading.header for heading in table.headings]
    assert headers[:4] == ["LP", "LP of [cls]", "LP of the mean", "LP on training images"]
    (warning,) = table.warnings
    assert warning == (
        "Not converged: linprobe of ASL (AEE), experiment asl: 49.7 % of its training images over "
        "the last tenth of its steps, 1.9 points more than over the tenth before, 46.0 % of the "
        "test images, at the largest rate of its grid; larger rates or more epochs would give more."
    )
    said = notes(table)
    assert (
        "LP: the best of a grid on held-out training images (10 %), by the same rule in each row; "
        "test images were read once, by what was chosen."
    ) in said
    assert (
        "LP of MAE: the best rate is the smallest of the grid; smaller ones may give more."
    ) in said


PARAMS = """
suite: tiny
title: Tiny
scale: reduced
tables: []
datasets: {icons: {source: icons, image_size: 16, train: 60, test: 20}}
experiments:
  mae:
    method: mae
    dataset: icons
    model: {size: vit-demo, image_size: 16, patch_size: 8, embed_dim: 24, depth: 4, num_heads: 3}
linprobe:
  mae: {dataset: icons, epochs: 4, batch_size: 24, warmup_epochs: 1, augment: false,
        precision: fp32, grid_rates: [1.6, 6.4]}
fewshot: {mae: {dataset: icons, shots: [2], percent: []}}
attentive:
  mae: {dataset: icons, epochs: 4, batch_size: 24, warmup_epochs: 1, precision: fp32, queries: 4}
"""


def test_the_command_line_runs_them_and_computes_features_once(
    site_template: Path,
    copy_project: Callable[[Path, Path], Path],
    tmp_path: Path,
    call: Any,
) -> None:
    project = copy_project(site_template, tmp_path / "project")
    (project / "params.yaml").write_text(PARAMS)

    def run(*arguments: str) -> None:
        done = call("asl-pipe", "run", *arguments, cwd=project, PYTHONPATH=str(project))
        assert done.returncode == 0, done.stderr

    def shared() -> dict[str, int]:
        files = (project / ".asl/features").glob("*/*/features.bin")
        return {str(path): path.stat().st_mtime_ns for path in files}

    run("code")
    run("prepare", "icons")
    encoder = project / "runs/encoder/mae"
    encoder.mkdir(parents=True)
    torch.manual_seed(0)
    save_encoder(encoder, Encoder(VIT).state_dict(), VIT)
    run("linprobe", "mae")
    computed = shared()
    assert len(computed) == 2  # a split each
    run("fewshot", "mae")
    run("attentive", "mae")
    assert shared() == computed
    for stage, metric in (
        ("linprobe", "lp_acc1"), ("fewshot", "fewshot_acc1_2shot"), ("attentive", "attentive_acc1")
    ):  # fmt: skip
        content = json.loads((project / f"runs/{stage}/mae.json").read_text())
        assert 0 <= content[metric] <= 100
        assert content["test_images"] == 20
