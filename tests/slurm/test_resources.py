"""Resources where they differ, and what is done about nodes, memory and ends, on a real Slurm."""

import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from lab import Lab, sum_after
from small_jobs import Jobs
from two_nodes import TwoNodes

from pipeline.jobs.job import read_attempts
from pipeline.jobs.verdict import Verdict
from pipeline.schedulers.port import EndKind, JobPhase
from pipeline.schedulers.slurm.resources import SlurmResources

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

LONG = pytest.mark.skipif(
    not os.environ.get("ASL_LONG_TESTS"), reason="a death is believed after two minutes"
)


@pytest.fixture
def lab(stub_project: Path, cluster: TwoNodes) -> Lab:
    """A project with stub stages, on the cluster without accounting."""
    return Lab(stub_project, cluster)


@pytest.fixture
def told() -> Iterator[tuple[str, list[Any]]]:
    """An address of this machine, and what was posted to it."""
    got: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", got
    server.shutdown()
    server.server_close()
    thread.join()


def tell(lab: Lab, webhook: str) -> None:
    """Add who is told to cluster.yaml."""
    file = lab.root / "cluster.yaml"
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()),
                                    "notify": {"webhook": webhook}}))  # fmt: skip


def wait_until_told(lab: Lab, got: list[Any], name: str, seconds: float = 90.0) -> dict[str, Any]:
    lab.wait(lambda: bool(got), name, seconds)
    sys.stdout.write(f"told: {got[-1]['text']}\n")
    return got[-1]


def shown(cluster: TwoNodes, job_id: str, *names: str) -> dict[str, str]:
    """Return what scontrol says of a job."""
    words = cluster.call("scontrol", "show", "job", "--oneliner", job_id).split()
    found = dict(word.split("=", 1) for word in words if "=" in word)
    said = {name: found.get(name, "") for name in names}
    sys.stdout.write(f"scontrol show job {job_id}: {said}\n")
    return said


def test_an_experiment_has_its_own_and_without_an_environment_frozen_code_runs(
    lab: Lab, told: tuple[str, list[Any]]
) -> None:
    address, got = told
    lab.stub(steps=7)
    lab.ask(options={"export": "NONE"})  # as a site's SBATCH_EXPORT would have it
    lab.ask("pretrain", partition=["high", "debug"], cpus=1, asl={"cpus": 2, "time": 7})
    tell(lab, address)
    said = lab.say("asl-pipe", "submit", "--all", SLURM_EXPORT_ENV="NONE", SBATCH_EXPORT="NONE")
    assert "looks after them when they have ended" in said
    lab.edit("pipeline/stages/pretrain.py", "SALT = 0", "SALT = 1000")
    job_id = lab.reports()["pretrain@asl"].job_id
    assert job_id is not None
    found = shown(lab.cluster, job_id, "Partition", "NumCPUs", "TimeLimit", "Dependency")
    assert (found["NumCPUs"], found["TimeLimit"]) == ("2", "00:07:00")
    assert found["Partition"] in ("high,debug", "high")
    lab.wait_for("linprobe@asl", Verdict.SUCCEEDED)
    message = wait_until_told(lab, got, "linprobe@asl")
    assert message["subject"] == "demo: 3 of 3 runs succeeded; all jobs have ended"
    lab.edit("pipeline/stages/pretrain.py", "SALT = 1000", "SALT = 0")
    assert lab.encoder() == sum_after(7)


def test_of_an_array_no_more_run_at_once_than_may(jobs: Jobs, cluster: TwoNodes) -> None:
    made = [jobs.make("import time; time.sleep(1)", max_running=2) for _ in range(6)]
    ids = jobs.scheduler.submit(made)
    array = ids[0].partition("_")[0]
    assert shown(cluster, f"{array}_5", "ArrayTaskThrottle")["ArrayTaskThrottle"] == "2"
    most, give_up = 0, time.monotonic() + 60
    while True:
        found = [job for job in jobs.scheduler.queue() if job.job_id in ids]
        most = max(most, sum(job.phase is JobPhase.RUNNING for job in found))
        if len(found) == 6 and all(job.has_ended for job in found):
            break
        assert time.monotonic() < give_up, found
        time.sleep(0.1)
    sys.stdout.write(f"of 6 ran at once at most {most}\n")
    assert most <= 2


def test_what_follows_by_any_end_begins_although_others_never_could(
    jobs: Jobs, cluster: TwoNodes
) -> None:
    failing = jobs.make("raise SystemExit(1)")
    (first,) = jobs.scheduler.submit([failing])
    orphan = replace(jobs.make("print('never')", after=(first,)), drop=True)
    (second,) = jobs.scheduler.submit([orphan])
    last = replace(jobs.make("print('began')"), after_any=(first, second))
    (third,) = jobs.scheduler.submit([last])
    jobs.wait_for_log(last, third, "began")
    states = [jobs.find(job_id).said for job_id in (first, second)]
    sys.stdout.write(f"{states}\n")
    assert states == ["FAILED", "CANCELLED"]
    assert jobs.find(second).never_began


def test_a_request_that_can_never_be_is_refused_at_once(lab: Lab) -> None:
    lab.ask(gpus="a100:4")
    began = time.monotonic()
    said = lab.submit("--stage", "prepare", code=1)
    sys.stdout.write(f"{said}after {time.monotonic() - began:.0f} s\n")
    assert "refused" in said


@LONG
def test_a_node_that_fails_twice_is_excluded(lab: Lab, told: tuple[str, list[Any]]) -> None:
    address, got = told
    lab.stub(steps=7, die_on="n1")
    lab.ask("pretrain", retries=2)
    tell(lab, address)
    lab.submit("--all")
    message = wait_until_told(lab, got, "pretrain@asl", 900.0)
    sys.stdout.write(lab.say("asl-pipe", "status"))
    report = lab.reports()["pretrain@asl"]
    tries = read_attempts(report.paths)
    sys.stdout.write(f"{[(each.job_id, each.terms.avoid) for each in tries]}\n")
    assert report.job_id is not None
    assert shown(lab.cluster, report.job_id, "ExcNodeList", "NodeList")["ExcNodeList"] == "n1"
    assert [list(each.terms.avoid) for each in tries] == [[], [], ["n1"]]
    assert "3 of 3 runs succeeded" in message["subject"]


@LONG
def test_what_a_node_still_makes_that_slurm_gave_up_counts_and_what_was_dropped_goes_on(
    lab: Lab, told: tuple[str, list[Any]]
) -> None:
    address, got = told
    lab.stub(steps=300, step_s=0.1)
    lab.ask("pretrain", retries=1, requeue="resubmit")
    tell(lab, address)
    lab.submit("--all")
    first = lab.wait_for_step("pretrain@asl", 3)
    node = lab.scheduler.node_names(next(j.nodes for j in lab.queue() if j.job_id == first))[0]
    try:
        lab.cluster.kill(f"slurmd-{node}")
        lab.wait(
            lambda: any(j.job_id == first and j.has_ended for j in lab.queue()), "pretrain@asl"
        )
        shown(lab.cluster, first, "JobState", "NodeList")
        assert lab.scheduler.ends_of(first) == [EndKind.NODE_FAILED]
        sys.stdout.write(f"eligible: {lab.scheduler.eligible_nodes(SlurmResources())}\n")
        assert node not in lab.scheduler.eligible_nodes(SlurmResources())
        message = wait_until_told(lab, got, "pretrain@asl", 900.0)
        assert "3 of 3 runs succeeded" in message["subject"]
    finally:
        lab.cluster.start_node(node)


@LONG
def test_a_job_without_enough_memory_gets_more(
    stub_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: tuple[str, list[Any]]
) -> None:
    cluster = TwoNodes(Path(tempfile.mkdtemp(prefix="asl-slurm-")), tied=True)
    cluster.folder.chmod(0o755)
    try:
        # without cgroups, which need root's own: Slurm looks every second how much a job has
        cluster.start(JobAcctGatherParams="OverMemoryKill", SelectTypeParameters="CR_Core_Memory")
        for name, value in cluster.environment.items():
            monkeypatch.setenv(name, value)
        lab, (address, got) = Lab(stub_project, cluster), told
        lab.stub(steps=7, megabytes=400)
        lab.ask("default", memory="1G")
        lab.ask("pretrain", memory="300M", memory_most="2G")
        tell(lab, address)
        lab.submit("--all")
        message = wait_until_told(lab, got, "pretrain@asl", 900.0)
        sys.stdout.write(lab.say("asl-pipe", "status"))
        tries = read_attempts(lab.reports()["pretrain@asl"].paths)
        asked = [each.terms.asked["memory"] for each in tries]
        sys.stdout.write(f"{asked}\n")
        for each in tries:
            shown(cluster, str(each.job_id), "JobState", "MinMemoryNode", "ExitCode")
        assert asked[:2] == ["300M", "450M"]
        assert "3 of 3 runs succeeded" in message["subject"]
    finally:
        cluster.stop()
        shutil.rmtree(cluster.folder, ignore_errors=True)
