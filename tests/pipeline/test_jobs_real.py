"""The real stages as jobs: the same bytes as here, however often they were interrupted."""

import hashlib
import json
import shutil
import signal
from pathlib import Path

import pytest
import yaml
from fake_scheduler import HERE as SERVICES

from pipeline.jobs.verdict import Verdict
from pipeline.submission.plan import Action

PARAMS = """
suite: tiny
title: Tiny
scale: reduced
tables: []
datasets: {icons: {source: icons, train: 8, test: 4, image_size: 32}}
experiments:
  asl:
    method: asl
    dataset: icons
    model: {size: vit-demo, embed_dim: 16, depth: 1, num_heads: 2, decoder_depth: 1}
    epochs: 40
    batch_size: 4
    warmup_epochs: 1
    lr: 1.0e-3
    precision: fp32
linprobe:
  asl: {dataset: icons, epochs: 2, batch_size: 4, lr: 1.0, warmup_epochs: 0, augment: false}
finetune: {}
detect: {}
segment: {}
analyze: {}
"""

DAG = ("prepare@icons", "pretrain@asl", "linprobe@asl")
DETAILS = ("runs/prepare/icons", "runs/pretrain/asl", "runs/linprobe/asl")


@pytest.fixture
def real_site(site, site_template: Path):
    """Return a site with the stages as they are."""
    for stage in ("prepare", "pretrain", "linprobe"):
        name = f"pipeline/stages/{stage}.py"
        shutil.copy(site_template / name, site.root / name)
    (site.root / "params.yaml").write_text(PARAMS)
    site.edit("cluster.yaml", "device: auto ", "log_every_steps: 1\n    device: auto ")
    resources = "resources: {device: cpu, threads: 1}"
    site.edit("cluster.yaml", "    cpus: 2 ", f"    {resources}\n    cpus: 2 ")
    return site


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def run_cache(root: Path) -> dict[str, tuple[str, dict[str, str]]]:
    """Return DVC's key -> command and digests of what stages read; people's details tell time."""
    entries = {}
    for path in (root / ".dvc/cache/runs").glob("??/*/*"):
        entry = yaml.safe_load(path.read_text())
        read = {out["path"]: out["md5"] for out in entry["outs"] if out["path"] not in DETAILS}
        entries[path.parent.name] = (entry["cmd"], read)
    return entries


@pytest.mark.slow
def test_an_interrupted_job_ends_with_the_bytes_of_an_undisturbed_run_here(
    real_site, tmp_path: Path
) -> None:
    site = real_site
    here = tmp_path / "here"
    shutil.copytree(site.root, here)
    done = site._call("dvc", "repro", "linprobe@asl", cwd=here, PYTHONPATH=f"{here}:{SERVICES}")
    assert done.returncode == 0, done.stderr
    site.submit("linprobe")
    job_id = site.run_until_step("pretrain@asl", 20)
    site.cluster.signal(job_id, signal.SIGUSR1)
    site.run(seconds=120)
    assert site.state("pretrain@asl").restarts == 1
    assert {report.verdict for report in site.reports().values()} == {Verdict.SUCCEEDED}
    said = site.dvc("repro", "linprobe@asl")
    assert said.count("is cached - skipping run") == 3
    assert "Running stage" not in said.replace("Running stage 'code'", "")
    for name in (
        "encoder/asl/encoder.safetensors", "pretrain/asl/method.safetensors",
        "linprobe/asl/probe.safetensors", "linprobe/asl/config.json",
    ):  # fmt: skip
        assert sha256(site.root / "runs" / name) == sha256(here / "runs" / name), name
    for stage in ("pretrain", "linprobe"):
        metrics, expected = (
            json.loads((root / f"runs/{stage}/asl.json").read_text()) for root in (site.root, here)
        )
        assert metrics == expected  # the fingerprint too: what is read has no journal in it
    filed, made = run_cache(site.root), run_cache(here)
    commands = {f"asl-pipe run {name.replace('@', ' ')}" for name in ("code", *DAG)}
    assert {command for command, _ in made.values()} == commands
    assert filed == made
    for name in DAG:
        assert "up to date" in site.dvc("status", name)


@pytest.mark.slow
def test_an_untrained_encoder_is_a_job_like_another(real_site) -> None:
    site = real_site
    model = "model: {size: vit-demo, embed_dim: 16, depth: 1, num_heads: 2}"
    entry = f"  none: {{method: untrained, dataset: icons, {model}}}\n"
    site.edit("params.yaml", "experiments:\n", f"experiments:\n{entry}")
    site.submit("pretrain", "none")
    site.run(seconds=120)
    assert {report.verdict for report in site.reports().values()} == {Verdict.SUCCEEDED}
    said = site.dvc("repro", "pretrain@none")
    assert "Stage 'pretrain@none' is cached - skipping run" in said
    assert (site.root / "runs/encoder/none/encoder.safetensors").is_file()
    assert site.plan("pretrain", "none").entry("pretrain@none").action is Action.NOTHING
