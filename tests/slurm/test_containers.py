"""Runs in containers on a real Slurm: what enters them is a stand-in that makes namespaces."""

import sys
from pathlib import Path

import apptainer
import pytest
import pyxis
from lab import Lab, sum_after

from pipeline.jobs.job import read_attempts
from pipeline.jobs.journal import read_records
from pipeline.jobs.verdict import Verdict

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


@pytest.fixture
def lab(stub_project: Path, cluster) -> Lab:
    """A project with stub stages whose jobs find the stand-in for Apptainer."""
    made = Lab(stub_project, cluster)
    apptainer.make_or_skip(made.shims, stub_project.with_name("asl.sif"))
    return made


def tags_of(lab: Lab, name: str) -> dict[str, str]:
    found: dict[str, str] = {}
    fingerprint = lab.state(name).fingerprint
    for record in read_records(lab.root / f".asl/jobs/{fingerprint}/journal"):
        found |= record.body["values"] if record.kind == "tags" else {}
    return found


def test_a_job_of_two_nodes_goes_back_into_the_queue_from_inside(lab: Lab) -> None:
    image = lab.root.with_name("asl.sif")
    lab.stub(steps=40, step_s=0.2)
    lab.ask(container=str(image))
    lab.ask("pretrain", nodes=2)
    lab.submit("--stage", "pretrain")
    job_id = lab.wait_for_step("pretrain@asl", 5)
    lab.cluster.call("scancel", "--signal=USR2", job_id)
    lab.wait(lambda: lab.state("pretrain@asl").restarts == 1, "pretrain@asl")
    report = lab.wait_for("pretrain@asl", Verdict.SUCCEEDED)
    assert report.job_id == job_id
    assert lab.encoder() == sum_after(40)
    tags = tags_of(lab, "pretrain@asl")
    assert tags["container.image"] == str(image)
    assert tags["container.digest"].startswith("sha256:")
    log = (report.paths.logs / f"{job_id}_0.log").read_text()
    assert log.count("apptainer exec --bind=") == 2  # of both starts
    assert "requeued as" in log


def test_where_srun_enters_a_new_job_is_submitted_from_inside(lab: Lab) -> None:
    image = lab.root.with_name("asl.sif")
    lab.put_in_the_way("srun", f'exec {sys.executable} {pyxis.__file__} REAL "$@"\n')
    lab.stub(steps=40, step_s=0.2)
    lab.ask(container={"image": str(image), "runtime": "pyxis"}, requeue="resubmit")
    others = set(Path("/tmp").glob("asl-????????/socket"))
    lab.submit("--stage", "pretrain")
    job_id = lab.wait_for_step("pretrain@asl", 5)
    assert set(Path("/tmp").glob("asl-????????/socket")) <= others  # nobody else can connect
    lab.cluster.call("scancel", "--signal=USR2", job_id)
    lab.wait(lambda: len(lab.queue()) == 3, "pretrain@asl")
    report = lab.wait_for("pretrain@asl", Verdict.SUCCEEDED)
    assert [each.number for each in read_attempts(report.paths)] == [1, 2]
    assert lab.encoder() == sum_after(40)
    assert tags_of(lab, "pretrain@asl")["container.runtime"] == "pyxis"
