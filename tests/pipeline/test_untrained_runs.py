"""An untrained encoder as a stage run like any other: repro, MLflow, plan, trace, vouch."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline.jobs.journal import effective_points

PARAMS = """
suite: tiny
title: Tiny
scale: reduced
tables: [table7]
datasets: {icons: {source: icons, train: 40, test: 20, image_size: 32}}
experiments:
  none:
    method: untrained
    dataset: icons
    model: {size: vit-demo, embed_dim: 16, depth: 1, num_heads: 2, decoder_depth: 1}
linprobe:
  none: {dataset: icons, epochs: 2, batch_size: 16, lr: 1.0, warmup_epochs: 0, augment: false}
analyze:
  none: {dataset: icons, images: 8}
"""
RUNS = ("pretrain@none", "linprobe@none", "analyze@none")
ENCODER = "asl_core/modules/encoder.py"

pytestmark = pytest.mark.slow

Say = Callable[..., str]


@pytest.fixture(scope="module")
def project(
    site_template: Path, repro: Callable[..., None], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A project in which all has run; the tests stand in its order of events."""
    root = tmp_path_factory.mktemp("untrained") / "project"
    shutil.copytree(site_template, root)
    (root / "params.yaml").write_text(PARAMS)
    (root / "cluster.yaml").write_text("local: {default: {device: cpu, threads: 1}}\n")
    repro(root, *RUNS)
    return root


@pytest.fixture
def say_there(project: Path, tmp_path: Path) -> Say:
    def run(*arguments: str, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-P", "-m", *arguments], cwd=project, capture_output=True, text=True,
            check=False, env=os.environ | {
                "PYTHONPATH": str(project), "DVC_SITE_CACHE_DIR": str(tmp_path / "site"),
            },
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


def test_pretraining_leaves_an_encoder_without_a_step_and_all_evaluations_run(
    project: Path,
) -> None:
    metrics = {
        stage: json.loads((project / f"runs/{stage}/none.json").read_text())
        for stage in ("pretrain", "linprobe", "analyze")
    }
    assert 0 <= metrics["linprobe"]["lp_acc1"] <= 100
    assert -1 <= metrics["analyze"]["token_similarity"] <= 1
    assert "contrast_correlation" not in metrics["analyze"]  # it predicts nothing
    assert metrics["pretrain"]["encoder_parameters_m"] > 0
    assert not {"flops_train_g", "pretrain/loss"} & metrics["pretrain"].keys()
    points = effective_points(project / "runs/pretrain/none/journal")
    assert {name for name in points if not name.startswith("system/")} == {"encoder_parameters_m"}


@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")
def test_it_is_current_and_has_a_run_in_mlflow(project: Path, say_there: Say) -> None:
    assert "up to date" in say_there("dvc", "status", *RUNS)
    say_there("pipeline", "sync")
    client = MlflowClient(tracking_uri=f"sqlite:///{project / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("asl/tiny")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert runs.keys() >= {"none", "pretrain/none", "linprobe/none", "analyze/none"}
    assert runs["pretrain/none"].data.params["method"] == "untrained"
    assert runs["linprobe/none"].data.tags["asl.row"] == "Random initialisation"
    assert "lp_acc1" in runs["none"].data.metrics


def test_its_number_is_traced_to_the_encoder_and_holds(say_there: Say) -> None:
    said = say_there("pipeline", "trace", "tiny", "Random initialisation", "LP", "--verify")
    assert "pretrain@none, which made the encoder" in said
    assert "the number holds" in said


def test_code_that_draws_the_same_is_vouched_for_and_no_other(
    project: Path, say_there: Say
) -> None:
    file = project / ENCODER
    text = file.read_text()
    assert text.count("projection") == 3
    file.write_text(text.replace("projection", "embedding_weight"))
    said = say_there("pipeline", "vouch", "pretrain", "none")
    assert "encoder_parameters_m evaluated again, equal" in said
    file.write_text(text.replace("self.cls_token, std=0.02)", "self.cls_token, std=0.03)"))
    said = say_there("pipeline", "vouch", "pretrain", "none", code=1)
    assert "the current code writes another" in said
    assert "encoder.safetensors" in said
