"""A claim outlives the slowest hand-over, and a job without a record is found by its id."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from pipeline.jobs import claim as claims
from pipeline.jobs.claim import claim, renewed
from pipeline.jobs.folder import PROVISIONAL, JobFolder
from pipeline.schedulers.port import BatchJob
from pipeline.submission.submit import submit


@dataclass
class Clock:
    """Seconds since 1970, as slow or fast as a test wants it."""

    now: float = 1e9

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr(claims, "RENEW_S", 0.01)
    return Clock()


def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "another-machine")


def wait_until_renewed(folder: Path, now: float) -> None:
    give_up = time.monotonic() + 20
    while not any(json.loads(path.read_text())["time"] == now
                  for path in folder.glob("renewed-*.json")):  # fmt: skip
        assert time.monotonic() < give_up
        time.sleep(0.01)


def test_a_claim_that_is_renewed_is_never_taken_over_from_another_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    held = claim(tmp_path, "f", clock())
    assert held is not None
    elsewhere(monkeypatch)
    with renewed([held], clock):
        for _ in range(3):  # fifteen minutes
            clock.now += 0.99 * claims.STALE_S
            assert claim(tmp_path, "f", clock()) is None
            wait_until_renewed(held.folder, clock.now)
    assert held.is_held()
    clock.now += 0.99 * claims.STALE_S
    assert claim(tmp_path, "f", clock()) is None
    clock.now += 0.02 * claims.STALE_S  # its owner is dead
    other = claim(tmp_path, "f", clock())
    assert other is not None
    held.renew(clock())  # as one that was only asleep would do
    assert other.is_held()
    assert not held.is_held()


def test_a_scheduler_that_takes_ten_minutes_is_given_a_run_once(
    site, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    clock.now = time.time()
    services = replace(site.services, clock=clock)
    plan = site.plan("prepare")
    taken, seen = site.cluster.submit, []

    def slow(jobs: list[BatchJob]) -> list[str]:
        (folder,) = (site.root / ".asl/jobs").glob("*.claim")
        here = socket.gethostname
        for _ in range(4):
            clock.now += 0.6 * claims.STALE_S
            wait_until_renewed(folder, clock.now)
            with monkeypatch.context() as patch:
                elsewhere(patch)
                seen.append(claim(folder.parent, folder.name.removesuffix(".claim"), clock()))
        assert socket.gethostname is here
        return taken(jobs)

    site.cluster.submit = slow
    (became,) = submit(plan, services)
    assert became.job_id == "1"
    assert seen == [None] * 4


def test_logs_of_a_job_without_a_record_are_found_by_its_id(
    site, monkeypatch: pytest.MonkeyPatch, say: Callable[..., str]
) -> None:
    monkeypatch.chdir(site.root)
    site.stub(fail=0)
    site.submit("prepare")
    paths = site.reports()["prepare@icons"].paths
    paths.job.rename(paths.folder / "lost.json")
    said = say("logs", "1")
    assert "job 1 is PENDING Priority; this project has no record of it" in said
    assert "it has printed nothing yet" in said
    (paths.folder / "lost.json").rename(paths.job)
    site.run()
    paths.job.unlink()
    assert "ZeroDivisionError" in say("logs", "1")
    assert "ZeroDivisionError" in say("logs", paths.fingerprint.removeprefix(PROVISIONAL)[:8])
    site.cluster.forget_ended()
    assert "the queue does not have it any more" in say("logs", "1")
    assert "ZeroDivisionError" in say("logs", "1", "--follow")
    assert "no job '9'" in say("logs", "9", code=2)
    # of another project: its comment says a run that is not here
    other = JobFolder.of(site.root.parent / "elsewhere", "0123456789abcdef")
    resources = site.plan("prepare").entries[0].request.asked
    (job_id,) = site.cluster.submit(
        [BatchJob("x", other.folder, "asl:01234567:token", ("true",), resources)]
    )
    said = say("logs", job_id)
    assert f"job {job_id} is PENDING Priority; this project has neither a record" in said


def test_ranks_that_do_not_go_together_are_one_line_in_a_job_too(tmp_path: Path) -> None:
    folder = tmp_path / ".asl/jobs/f"
    folder.mkdir(parents=True)
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK")}
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.worker.main", str(folder), "token"],
        capture_output=True, text=True, check=False, env=environment | {"WORLD_SIZE": "2"},
    )  # fmt: skip
    assert done.returncode == 2
    assert "WORLD_SIZE is 2 but RANK is not set; start the processes with torchrun" in done.stderr
    assert "Traceback" not in done.stderr
