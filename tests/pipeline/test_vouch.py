"""A result survives a refactor that changes no number, and no other."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

PARAMS = """
suite: tiny
title: Tiny
scale: reduced
tables: [table7]
datasets: {icons: {source: icons, train: 40, test: 20, image_size: 32}}
experiments:
  mae: &mae
    method: mae
    dataset: icons
    model: {size: vit-demo, embed_dim: 16, depth: 1, num_heads: 2, decoder_depth: 1}
    epochs: 2
    batch_size: 4
    warmup_epochs: 1
    lr: 1.0e-3
    precision: fp32
linprobe:
  mae: {dataset: icons, epochs: 30, batch_size: 16, optimizer: adamw, lr: 0.05, warmup_epochs: 0,
        augment: false}
analyze:
  mae: {dataset: icons, images: 8}
"""
RUNS = ("pretrain@mae", "linprobe@mae", "analyze@mae")
LOOP = "asl_core/engine/loop.py"
RENAMED = (
    ("sizes = [", "counts = ["), (" sizes[i]", " counts[i]"), ("sum(sizes)", "sum(counts)"),
)  # fmt: skip

pytestmark = pytest.mark.slow


class Place:
    """A project with results, whose code a test edits."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}

    def edit(self, path: str, *changes: tuple[str, str]) -> None:
        text = (self.root / path).read_text()
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        (self.root / path).write_text(text)

    def say(self, *arguments: str, code: int = 0) -> str:
        command = [sys.executable, "-P", "-m", *arguments]
        done = subprocess.run(
            command, cwd=self.root, env=self.environment, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def vouch(self, *arguments: str, code: int = 0) -> str:
        return self.say("pipeline", "vouch", *arguments, code=code)

    def repro(self) -> str:
        return self.say("dvc", "repro", *RUNS)


@pytest.fixture(scope="module")
def template(
    site_template: Path, repro: Callable[..., None], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    root = tmp_path_factory.mktemp("vouched") / "project"
    shutil.copytree(site_template, root)
    (root / "params.yaml").write_text(PARAMS)
    (root / "cluster.yaml").write_text("local: {default: {device: cpu, threads: 1}}\n")
    repro(root, *RUNS)
    return root


@pytest.fixture
def place(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    root = tmp_path / "project"
    shutil.copytree(template, root, symlinks=True)
    return Place(root)


def test_a_renamed_variable_is_vouched_for_and_said_for_ever(place: Place) -> None:
    key = json.loads((place.root / "runs/pretrain/mae.json").read_text())["fingerprint"]
    place.edit(LOOP, *RENAMED)
    said = place.vouch("linprobe", "mae", code=2)
    assert "first vouch for, pull or run its inputs: pretrain@mae\n" in said
    said = place.vouch("--all")
    assert "pretrain@mae" in said
    assert "20 steps replayed, equal bit for bit" in said
    measured = "lp_acc1, lp_acc5, lp_train_acc1, lp_train_rise, lp_converged"
    assert f"; {measured} evaluated again, equal; " in said
    assert "analyze@mae: current" in said  # it takes no steps: the loop is no code of its
    said = place.repro()
    assert "Running stage 'code'" in said
    assert said.count("Running stage") == 1
    assert said.count("is cached - skipping run") == 2
    assert "up to date" in place.say("dvc", "status", *RUNS)
    assert "current, nothing to vouch for" in place.vouch("pretrain", "mae")
    traced = place.say("pipeline", "trace", "tiny", "mae", "LP")
    assert "vouched" in traced
    assert "asl_core.engine.loop" in traced
    assert f"key {key[:8]} -> " in traced
    tables = place.say("pipeline", "tables", "--format", "md")
    assert "rv" in tables
    assert "vouched for. Made with earlier code" in tables


def test_a_rate_that_differs_by_one_part_in_ten_thousand_is_refused(place: Place) -> None:
    place.edit(
        "asl_core/engine/loop.py",
        ("            schedule.step_update(step)\n",
         "            schedule.step_update(step)\n"
         "        for group in state.optimizer.param_groups:\n"
         "            group['lr'] *= 1.0001\n"),
    )  # fmt: skip
    said = place.vouch("pretrain", "mae", code=1)
    assert "pretrain@mae: the current code computes something else: step " in said
    assert "apart, relative" in said
    assert "encoder." in said or "decoder." in said or "loss" in said
    assert not list(place.root.glob("runs/pretrain/*.vouched.json"))
    assert "changed deps" in place.say("dvc", "status", "pretrain@mae")
    said = place.vouch("linprobe", "mae", code=2)
    assert "first vouch for, pull or run its inputs" in said


def test_a_witness_that_was_edited_is_refused(place: Place) -> None:
    place.edit(LOOP, *RENAMED)
    (file,) = place.root.glob("runs/pretrain/mae/journal/attempt-000.jsonl")
    text = file.read_text()
    assert '"kind": "witness"' in text
    file.unlink()  # DVC may share it with its cache
    file.write_text(text.replace('"kind": "witness"', '"kind":  "witness"'))
    said = place.vouch("pretrain", "mae", code=2)
    assert "runs/pretrain/mae has changed" in said


def test_more_than_code_that_has_changed_is_nothing_to_vouch_for(place: Place) -> None:
    place.edit(LOOP, *RENAMED)
    place.edit("params.yaml", ("warmup_epochs: 1\n", "warmup_epochs: 0\n"))
    said = place.vouch("pretrain", "mae", code=2)
    assert "more than its code has changed: experiments.mae.warmup_epochs 1 -> 0" in said


def test_an_evaluation_that_measures_something_else_is_refused(place: Place) -> None:
    place.edit("asl_core/analysis/tokens.py", ("import torch\n", "import torch\n\nFACTOR = 1.0\n"))
    assert "evaluated again, equal" in place.vouch("analyze", "mae")
    measured = "metrics = analyse_tokens(encoder, dataset, run.recipe, run.resources).metrics"
    other = f"{measured}\n    metrics = {{name: value + 1e-9 for name, value in metrics.items()}}"
    place.edit("pipeline/stages/analyze.py", (measured, other))
    said = place.vouch("analyze", "mae", code=1)
    assert "the current code gives" in said


REFUSED = {
    "losses": ("pipeline/stages/pretrain.py", "name: value for name, (_, value, _)",
               "name: 7 * value for name, (_, value, _)", "pretrain/loss was"),
    "parameters": ("pipeline/stages/pretrain.py", '"pos_embed") / 1e6', '"pos_embed") / 1e3',
                   "encoder_parameters_m was"),
    "encoder": ("pipeline/stages/pretrain.py", "method.encoder_state(), recipe.model, recipe.",
                "{k: 3 * v for k, v in method.encoder_state().items()}, recipe.model, recipe.",
                "the current code writes another"),
    "predictions": ("asl_core/held_out.py", "torch.cat(tensors) for", "2 * torch.cat(tensors) for",
                    "the current code writes another"),
    "names": ("pipeline/stages/pretrain.py", '{"encoder_parameters_m":', '{"parameters_e":',
              "the current code measures by other names: encoder_parameters_m, parameters_e"),
    "failure": ("asl_core/held_out.py", "torch.cat(tensors) for", "torch.cut(tensors) for",
                "the current code fails: AttributeError"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_training_steps_do_not_show_is_compared_too(place: Place, what: str) -> None:
    path, old, new, said = REFUSED[what]
    place.edit(path, (old, new))
    assert said in place.vouch("pretrain", "mae", code=1)
    assert not list(place.root.glob("runs/pretrain/*.vouched.json"))
    assert "changed deps" in place.say("dvc", "status", "pretrain@mae")


def test_a_record_that_cannot_be_written_leaves_the_result_stale(place: Place) -> None:
    place.edit(LOOP, *RENAMED)
    record = place.root / "runs/pretrain/mae.vouched.json"
    record.write_text('{"a": 1}')
    assert "is damaged" in place.vouch("pretrain", "mae", code=2)
    record.unlink()
    record.mkdir()
    assert "is damaged" in place.vouch("pretrain", "mae", code=2)
    record.rmdir()
    assert "replayed, equal bit for bit" in place.vouch("pretrain", "mae")


def test_bad_names_are_one_line(place: Place) -> None:
    assert "say what to vouch for" in place.vouch(code=2)
    assert "unknown stage 'pretrian'; did you mean 'pretrain'?" in place.vouch("pretrian", code=2)
    assert "has no numbers to compare" in place.vouch("prepare", "icons", code=2)
    assert "unknown experiment" in place.vouch("pretrain", "asl", code=2)
