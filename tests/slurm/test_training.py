"""The real stages on a real Slurm: the bytes of an undisturbed run, the losses of one process."""

import hashlib
import json
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from lab import Lab
from two_nodes import TwoNodes

from pipeline.jobs.verdict import Verdict

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

PARAMS = """
suite: tiny
title: Tiny
scale: reduced
tables: []
datasets: {{icons: {{source: icons, train: 16, test: 5, image_size: 32}}}}
experiments:
  asl:
    method: asl
    dataset: icons
    model: {{size: vit-demo, embed_dim: 16, depth: 1, num_heads: 2, decoder_depth: 1}}
    epochs: {epochs}
    batch_size: 4
    warmup_epochs: 1
    lr: 1.0e-3
    precision: fp32
linprobe:
  asl: {{dataset: icons, epochs: 2, batch_size: 8, lr: 1.0, warmup_epochs: 0, augment: false}}
finetune: {{}}
detect: {{}}
segment: {{}}
analyze: {{}}
"""


@pytest.fixture
def lab(
    site_template: Path,
    copy_project: Callable[[Path, Path], Path],
    tmp_path: Path,
    cluster: TwoNodes,
) -> Lab:
    """A project with the stages as they are, its data in the workspace."""
    root = copy_project(site_template, tmp_path / "project")
    (root / "params.yaml").write_text(PARAMS.format(epochs=10))
    return Lab(root, cluster)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_preempted_job_ends_with_the_bytes_of_an_undisturbed_run(lab: Lab) -> None:
    (lab.root / "params.yaml").write_text(PARAMS.format(epochs=400))
    here = lab.root.with_name("here")
    shutil.copytree(lab.root, here)
    lab.say("dvc", "--cd", str(here), "repro", "pretrain@asl", PYTHONPATH=str(here))
    lab.submit("--stage", "pretrain")
    lab.wait_for_step("pretrain@asl", 30)
    urgent = ("sbatch", "--parsable", "-p", "high", "-N2", "-c2", "--output=/dev/null")
    lab.cluster.call(*urgent, "--wrap", "srun sleep 1")
    lab.wait_for("pretrain@asl", Verdict.SUCCEEDED, 180)
    assert lab.state("pretrain@asl").restarts == 1
    lab.adopt("pretrain@asl")
    for path in (
        "runs/encoder/asl/encoder.safetensors", "runs/pretrain/asl/method.safetensors",
    ):  # fmt: skip
        assert sha256(lab.root / path) == sha256(here / path), path


@pytest.mark.timeout(900)
def test_processes_on_two_nodes_have_the_losses_of_one(lab: Lab) -> None:
    curves = {}
    for nodes, tasks in ((1, 1), (2, 1), (2, 2)):
        lab.ask("pretrain", nodes=nodes, tasks_per_node=tasks)
        lab.submit("--stage", "pretrain", "--force")
        lab.wait(lambda: not lab.live(), "pretrain@asl", 300)
        lab.wait_for("pretrain@asl", Verdict.SUCCEEDED, 10)
        curves[nodes * tasks] = lab.losses("pretrain@asl")
    assert len(curves[1]) == 40
    for processes in (2, 4):
        pairs = zip(curves[processes], curves[1], strict=True)
        largest = max(abs(a / b - 1) for a, b in pairs)
        sys.stdout.write(f"{processes} processes: losses differ by {largest:.1e} at most\n")
        assert curves[processes] == pytest.approx(curves[1], rel=1e-5)
    lab.ask("linprobe", nodes=2, tasks_per_node=2)
    lab.submit("--stage", "linprobe")
    lab.wait_for("linprobe@asl", Verdict.SUCCEEDED, 300)
    lab.adopt("pretrain@asl", "linprobe@asl")
    score = json.loads((lab.root / "runs/linprobe/asl.json").read_text())["lp_acc1"]
    # five test images on four processes: each counts once
    assert math.isclose(score, 20 * round(score / 20), abs_tol=1e-6)


def test_a_suite_is_rehearsed_in_jobs_on_two_nodes(lab: Lab) -> None:
    lab.ask("pretrain", nodes=2)
    said = lab.say("asl-pipe", "rehearse", "--steps", "6", "--batch", "2")
    rows = {line.split()[0]: line for line in said.splitlines() if "@" in line.split(" ")[0]}
    assert {"pretrain@asl", "linprobe@asl"} <= set(rows), said
    assert " yes " in rows["pretrain@asl"]
    assert "one after the other:" in said
    report = json.loads((lab.root / ".asl/rehearsals/demo.json").read_text())
    pretrain, linprobe = report["estimates"][-2:]
    # two processes with two images each are a step of four, the true batch
    assert (pretrain["batch"], pretrain["fits"], pretrain["problem"]) == (2, True, None)
    assert pretrain["checkpoint_bytes"] > 0
    assert linprobe["each"]["expected"] > 0
    states = {job.comment: job.said for job in lab.scheduler.queue()}
    assert [state for comment, state in states.items() if "asl-rehearsal" in comment]
    assert not (lab.root / ".asl/rehearsals/demo-work").exists()
    assert not (lab.root / "runs").exists()


def test_a_rehearsal_says_what_a_job_died_of(lab: Lab) -> None:
    lab.ask(setup=["echo no such module >&2", "false"])
    said = lab.say("asl-pipe", "rehearse", "--steps", "3", "--stage", "pretrain", code=1)
    assert "first problem: prepare@icons: it ended early: no such module" in said
