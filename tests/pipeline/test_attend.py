"""`dvc repro` of a run that a job makes: refuse, wait, adopt."""

import json
import os
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import AslPipeError, NotFinishedError
from pipeline.jobs.job import read_attempts
from pipeline.jobs.verdict import Patience, Verdict
from pipeline.results.port import Identity
from pipeline.submission.await_job import HERE, WAIT, Attendance
from pipeline.submission.job_reports import job_reports


def repro(site: Any, name: str, **environment: str) -> subprocess.Popen[str]:
    """Start `dvc repro NAME`, whose command finds the cluster of the test."""
    return subprocess.Popen(
        ["dvc", "repro", name],
        cwd=site.root,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(process: subprocess.Popen[str], text: str) -> None:
    """Read what a process prints until a text is there."""
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if text in said:
            return
    pytest.fail(f"{text!r} is not in {said}")


@pytest.fixture
def prepared(site: Any) -> Any:
    """A site whose data are there."""
    site.stub(steps=7)
    site.submit("prepare")
    site.run()
    site.dvc("repro", "prepare@icons")
    return site


def test_a_job_that_lives_leaves_the_lock_alone(prepared: Any) -> None:
    prepared.submit("pretrain")
    lock = (prepared.root / "dvc.lock").read_bytes()
    with repro(prepared, "pretrain@asl") as process:
        said, _ = process.communicate(timeout=240)
    assert process.returncode != 0
    assert "pretrain@asl: job 2 is ACTIVE (PENDING" in said
    assert "exited with 75" in said
    assert (prepared.root / "dvc.lock").read_bytes() == lock
    assert not (prepared.root / "runs/pretrain/asl").exists()
    assert len(prepared.cluster.all()) == 2


def test_waiting_adopts_the_result_when_the_job_has_ended(prepared: Any) -> None:
    prepared.submit("pretrain")
    with repro(prepared, "pretrain@asl", **{WAIT: "1"}) as process:
        wait_for(process, "job 2 is ACTIVE (PENDING")
        prepared.run()
        said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert (prepared.root / "runs/encoder/asl/encoder.safetensors").is_file()
    assert "up to date" in prepared.dvc("status", "pretrain@asl")
    assert len(prepared.cluster.all()) == 2


def test_a_waiting_command_that_is_killed_takes_nothing_with_it(prepared: Any) -> None:
    prepared.submit("pretrain")
    with repro(prepared, "pretrain@asl", **{WAIT: "1"}) as process:
        wait_for(process, "job 2 is ACTIVE")
        prepared.run_until_step("pretrain@asl", 3)
        process.kill()
    prepared.run()
    assert prepared.encoder()


def test_a_job_that_failed_is_not_repeated_here_unasked(prepared: Any) -> None:
    prepared.stub(steps=7, fail=0)
    prepared.submit("pretrain")
    prepared.run()
    identity = prepared.cache.identify(prepared.root, "pretrain@asl")
    attend = Attendance(prepared.services)
    with pytest.raises(
        AslPipeError, match=r"job 2 is FAILED .*rank 0 fails.*asl-pipe submit"
    ) as caught:
        attend.result_of(prepared.project, "pretrain@asl", identity)
    assert not isinstance(caught.value, NotFinishedError)
    assert HERE in str(caught.value)
    here = Attendance(prepared.services, here=True)
    assert here.result_of(prepared.project, "pretrain@asl", identity) is None


def test_a_job_that_was_submitted_before_its_inputs_is_found(site: Any) -> None:
    site.stub(steps=4000, step_s=0.05)
    site.submit("pretrain")
    site.cluster.run(until=lambda: site.cluster.read("1")["state"] == "COMPLETED")
    site.dvc("repro", "prepare@icons")
    identity = site.cache.identify(site.root, "pretrain@asl")
    with pytest.raises(NotFinishedError, match="job 2 is"):
        Attendance(site.services).result_of(site.project, "pretrain@asl", identity)
    site.edit("params.yaml", "epochs: 2", "epochs: 3")
    other = site.cache.identify(site.root, "pretrain@asl")
    assert Attendance(site.services).result_of(site.project, "pretrain@asl", other) is None


def test_nothing_is_known_while_the_scheduler_does_not_answer(prepared: Any) -> None:
    prepared.submit("pretrain")
    (prepared.cluster.folder / "faults.json").write_text('{"deaf": -1}')
    identity = prepared.cache.identify(prepared.root, "pretrain@asl")
    with pytest.raises(NotFinishedError, match="UNKNOWN"):
        Attendance(prepared.services, here=True).result_of(
            prepared.project, "pretrain@asl", identity
        )


def test_outputs_that_are_gone_come_back_from_the_cache(prepared: Any) -> None:
    prepared.submit("pretrain")
    prepared.run()
    encoder = prepared.encoder()
    path: Path = prepared.root / "runs/encoder/asl/encoder.safetensors"
    path.unlink(missing_ok=True)
    identity = prepared.cache.identify(prepared.root, "pretrain@asl")
    outputs = Attendance(prepared.services).result_of(prepared.project, "pretrain@asl", identity)
    assert outputs is not None
    prepared.cache.link(prepared.root, outputs, prepared.root)
    assert path.read_text() == encoder


def attend(site: Any, **changes: Any) -> Attendance:
    return Attendance(replace(site.services, **changes), wait="pause" in changes)


def identify(site: Any) -> Identity:
    return site.cache.identify(site.root, "pretrain@asl")


def test_a_run_that_another_suite_has_submitted_is_found(prepared: Any) -> None:
    prepared.submit("pretrain")
    record = prepared.reports()["pretrain@asl"].paths
    # as it is before its inputs are there: filed under its recipe, by a suite that shares the run
    job = json.loads(record.job.read_text())
    earlier = record.folder.with_name(f"p-{job['recipe']}")
    changed = {"suite": "suites/other", "fingerprint": earlier.name}
    record.job.write_text(json.dumps(job | changed))
    record.folder.rename(earlier)
    with pytest.raises(NotFinishedError, match="job 2 is ACTIVE"):
        attend(prepared).result_of(prepared.project, "pretrain@asl", identify(prepared))


def test_a_job_that_lives_counts_more_than_one_that_has_failed(site: Any) -> None:
    site.stub(steps=4000, step_s=0.05)
    site.submit("pretrain")
    site.cluster.run(until=lambda: site.cluster.read("1")["state"] == "COMPLETED")
    site.dvc("repro", "prepare@icons")
    lives = site.reports()["pretrain@asl"].paths
    identity = identify(site)
    failed = lives.folder.with_name(identity.fingerprint)
    failed.mkdir(exist_ok=True)
    job = json.loads(lives.job.read_text())
    (failed / "job.json").write_text(json.dumps(job | {"fingerprint": identity.fingerprint}))
    found = job_reports(site.root, site.cluster, site.cache)
    reports = {report.paths.fingerprint: report.verdict for report in found}
    assert reports[identity.fingerprint] is Verdict.LOST
    with pytest.raises(NotFinishedError, match="job 2 is ACTIVE"):
        attend(site).result_of(site.project, "pretrain@asl", identity)


def give_to_somebody(site: Any, name: str) -> Path:
    """Let a job be another user's, whom the queue does not show; return its record."""
    paths = site.reports()[name].paths
    number = read_attempts(paths)[-1].number
    path = paths.attempts / f"{number:03d}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"user": "somebody"}))
    (site.cluster.folder / "jobs").rename(site.cluster.folder / "of others")
    (site.cluster.folder / "jobs").mkdir()
    return paths.folder


def test_a_job_of_which_nothing_is_heard_is_not_waited_for_for_ever(prepared: Any) -> None:
    prepared.submit("pretrain")
    give_to_somebody(prepared, "pretrain@asl")
    now = [time.time()]
    waits = attend(
        prepared, patience=Patience(settling_s=300.0), clock=lambda: now[0],
        pause=lambda seconds: now.__setitem__(0, now[0] + seconds),
    )  # fmt: skip
    began = now[0]
    with pytest.raises(NotFinishedError, match=r"submitted by somebody.*no sign of it"):
        waits.result_of(prepared.project, "pretrain@asl", identify(prepared))
    assert 300 < now[0] - began < 320


def test_a_failed_job_of_another_user_is_seen_to_have_failed(prepared: Any) -> None:
    prepared.stub(steps=7, fail=0)
    prepared.submit("pretrain")
    prepared.run()
    give_to_somebody(prepared, "pretrain@asl")
    later = attend(prepared, clock=lambda: time.time() + 10)
    with pytest.raises(AslPipeError, match=r"FAILED .*rank 0 fails") as caught:
        later.result_of(prepared.project, "pretrain@asl", identify(prepared))
    assert not isinstance(caught.value, NotFinishedError)
