"""From a table's cell to its origin, and whether it still holds."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from pipeline.config.yaml_files import read_yaml

PARAMS = """
suite: tiny
title: Tiny
scale: reduced
tables: [table7]
datasets: {icons: {source: icons, train: 40, test: 20, image_size: 32}}
experiments:
  asl: &asl
    method: asl
    dataset: icons
    model: {size: vit-demo, embed_dim: 16, depth: 1, num_heads: 2, decoder_depth: 1}
    epochs: 2
    batch_size: 4
    warmup_epochs: 1
    lr: 1.0e-3
    precision: fp32
  asl-seed1: {<<: *asl, seed: 1}
  mae: {<<: *asl, method: mae}
linprobe:
  asl: &probe
    dataset: icons
    epochs: 60
    batch_size: 16
    optimizer: adamw
    lr: 0.05
    warmup_epochs: 0
    augment: false
    both_poolings: true
  asl-seed1: *probe
finetune:
  asl: {dataset: icons, epochs: 1, batch_size: 4, warmup_epochs: 0, mixup: 0.0, cutmix: 0.0}
detect: {}
segment: {}
analyze:
  asl: {dataset: icons, images: 8}
"""

Say = Callable[..., str]


@pytest.fixture(scope="module")
def template(
    site_template: Path, repro: Callable[..., None], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Make a project with results once."""
    root = tmp_path_factory.mktemp("traced") / "project"
    shutil.copytree(site_template, root)
    (root / "params.yaml").write_text(PARAMS)
    (root / "cluster.yaml").write_text("local: {default: {device: cpu, threads: 1}}\n")
    for command in (["add", "-A"], ["commit", "-qm", "Begin"]):
        subprocess.run(["git", "-C", str(root), *command], check=True, env=clean_git())
    repro(root, "linprobe", "finetune@asl", "analyze@asl", "pretrain@mae")
    shutil.rmtree(root / ".asl")
    return root


def clean_git() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}


@pytest.fixture
def project(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "project"
    shutil.copytree(template, root, symlinks=True)
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    monkeypatch.chdir(root)
    return root


@pytest.mark.slow
def test_a_number_leads_to_all_its_runs_and_holds(project: Path, say: Say) -> None:
    said = say("trace", "table7", "ASL", "LP", "--verify")
    order = ["linprobe@asl\n", "pretrain@asl,", "linprobe@asl-seed1\n", "pretrain@asl-seed1,"]
    places = [said.index(f"\n{name}") for name in order]
    assert places == sorted(places)
    assert "2 runs" in said
    assert "(paper: 48.6; reduced scale)" in said
    git = ["git", "rev-parse", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    assert said.count(f"commit {commit}\n") == 4
    assert "CHANGED" not in said
    assert said.count("difference 0\n") == 2
    numbers = {line.split(" = ")[1] for line in said.splitlines() if "lp_acc1 = " in line}
    assert "0.0" not in numbers
    assert said.endswith("the number holds\n")


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["lp_acc1_mean", "ft_acc1", "token similarity", "FLOPs train"])
def test_numbers_of_other_stages_hold_too(project: Path, say: Say, metric: str) -> None:
    said = say("trace", "demo", "asl", metric, "--verify")
    assert said.endswith("the number holds\n")
    # a cost is a multiple of MAE's, whose run is looked at as well
    assert ("pretrain@mae" in said) == (metric == "FLOPs train")


@pytest.mark.slow
def test_a_changed_byte_of_the_encoder_is_found_though_its_size_and_time_are_the_same(
    project: Path, say: Say
) -> None:
    say("trace", "demo", "asl", "LP", "--verify")
    path = project / "runs/encoder/asl/encoder.safetensors"
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    said = say("trace", "demo", "asl", "LP", "--verify", code=1)
    assert said.count("CHANGED  runs/encoder/asl: dvc.lock says ") == 2
    assert "CHANGED  linprobe@asl: not evaluated" in said
    assert "ok       linprobe@asl-seed1 lp_acc1" in said
    assert said.endswith("the number no longer holds\n")


@pytest.mark.slow
def test_a_number_that_was_written_by_hand_does_not_hold_until_dvc_restores_it(
    project: Path, say: Say, repro: Callable[..., None]
) -> None:
    path = project / "runs/finetune/asl.json"
    before = path.read_bytes()
    number = say("trace", "demo", "asl", "FT").split("ft_acc1 = ")[1].split("\n")[0]
    path.chmod(0o644)
    path.write_text(path.read_text().replace(f'"ft_acc1": {number}', '"ft_acc1": 99.9'))
    said = say("trace", "demo", "asl", "FT", "--verify", code=1)
    assert "CHANGED  runs/finetune/asl.json: dvc.lock says" in said
    assert "runs/finetune/asl.json differs from dvc.lock" in say("tables", code=1)
    repro(project, "finetune@asl")
    assert path.read_bytes() == before
    assert "20 test images, standard error" in say("trace", "demo", "asl", "FT")
    errors = say("tables").split("Standard error over the choice of test images: ")[1]
    assert "FT " in " ".join(errors.split())  # wherever its line breaks


@pytest.mark.slow
def test_settings_that_were_changed_in_dvc_lock_too_do_not_hold(project: Path, say: Say) -> None:
    params = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(params.replace("icons, epochs: 1,", "icons, epochs: 9,"))
    lock = read_yaml(project / "dvc.lock")
    lock["stages"]["finetune@asl"]["params"]["params.yaml"]["finetune.asl"]["epochs"] = 9
    (project / "dvc.lock").write_text(yaml.safe_dump(lock))
    assert "finetune@asl" in say("trace", "demo", "asl", "FT")
    said = say("trace", "demo", "asl", "FT", "--verify", code=1)
    assert "CHANGED  finetune@asl key: dvc.lock gives " in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("demo", "mae", "LP"), "MAE, LP: we have no number; this suite does not"),
        (("table8", "asl", "LP"), "unknown table 'table8'; did you mean 'table7'?"),
        (("demo", "als", "LP"), "unknown row 'als'; did you mean 'asl'?"),
        (("demo", "asl", "lp_acc"), "unknown metric 'lp_acc'; did you mean 'lp_acc1'?"),
    ],
)
def test_names_that_do_not_exist(
    project: Path, say: Say, arguments: tuple[str, ...], line: str
) -> None:
    said = say("trace", *arguments, code=2)
    assert line in said
    assert len(said.splitlines()) == 1
