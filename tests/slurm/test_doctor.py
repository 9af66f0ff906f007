"""The doctor on a real cluster of two nodes."""

import dataclasses
from pathlib import Path

import pytest
from small_jobs import Jobs
from two_nodes import TwoNodes

from pipeline import cli
from pipeline.doctor.nodes import examine_nodes
from pipeline.schedulers.port import Finding, Level
from pipeline.schedulers.slurm.resources import SlurmResources

pytestmark = pytest.mark.slurm


def nodes(jobs: Jobs, **asked: object) -> dict[str, Finding]:
    request = SlurmResources(**asked)  # type: ignore[arg-type]
    found = list(examine_nodes(jobs.folder, jobs.scheduler, request, wait_s=20))
    assert not [job for job in jobs.scheduler.queue() if not job.has_ended]
    assert not list(jobs.folder.glob("doctor-*"))
    return {finding.what: finding for finding in found}


def test_two_nodes_are_examined(jobs: Jobs) -> None:
    findings = nodes(jobs, nodes=2)
    assert {finding.level for finding in findings.values()} == {Level.OK}, findings
    assert findings["a job"].detail.startswith("ran on ")
    assert {"network between nodes", "signals", "requeue", "clocks"} <= findings.keys()


def test_a_setup_that_breaks_the_job_is_quoted(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.doctor.nodes.ANSWER_S", 5.0)
    finding = nodes(jobs, setup=("echo no such module >&2; exit 1",))["a job"]
    assert finding.level is Level.FAILURE
    assert finding.remedy == "its log ends: no such module"


def test_a_request_that_is_refused_says_so(jobs: Jobs) -> None:
    finding = nodes(jobs, partition="nowhere")["a job"]
    assert finding.level is Level.FAILURE
    assert "Invalid partition" in finding.detail


def test_a_full_cluster_is_no_fault(jobs: Jobs) -> None:
    jobs.scheduler.submit([jobs.make("import time; time.sleep(120)", nodes=2, cpus=2)])
    request = dataclasses.replace(SlurmResources(), nodes=2)
    [finding] = examine_nodes(jobs.folder, jobs.scheduler, request, wait_s=1)
    assert finding.level is Level.WARNING
    assert "has waited 1 s" in finding.detail


def test_the_command_says_what_it_found(
    cluster: TwoNodes,
    copied_project: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(copied_project)
    assert cli.run_command(["doctor", "--stage", "linprobe"]) == 0
    said = capsys.readouterr().out
    assert "ok       requeue: allowed" in said
    (copied_project / "cluster.yaml").write_text("slurm: {detect: {partition: nowhere}}")
    assert cli.run_command(["doctor", "--no-jobs"]) == 1
    said = capsys.readouterr().out
    assert "failure  cluster.yaml for detect: sbatch: " in said
    assert "a job" not in said
