"""submit, plan, status, logs, cancel, gc as they are typed."""

import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.cli import run_command

Say = Callable[..., str]


@pytest.fixture
def say(site: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Say:
    """Run a command line in the site and return what it printed."""
    monkeypatch.chdir(site.root)
    monkeypatch.setenv("ASL_FAKE_CLUSTER", str(site.cluster.folder))
    site.stub(steps=7)

    def run(*arguments: str, code: int = 0) -> str:
        capfd.readouterr()
        found = run_command(list(arguments))
        out, err = capfd.readouterr()
        assert found == code, out + err
        return out + err

    return run


def row(text: str, name: str) -> list[str]:
    """Return the cells of a table's line."""
    line = next(line for line in text.splitlines() if line.startswith(name))
    return line.split()


def test_submit_prints_what_became_of_each_run(site: Any, say: Say) -> None:
    dry = say("submit", "--all", "--dry-run")
    assert row(dry, "linprobe@asl")[1] == "submit"
    assert "prepare@icons, pretrain@asl" in dry
    assert site.cluster.all() == []
    first = say("submit", "--all")
    assert row(first, "pretrain@asl")[1:3] == ["submitted", "2"]
    assert row(say("submit", "--stage", "pretrain", "asl"), "pretrain@asl")[1:3] == [
        "attached",
        "2",
    ]
    site.run()
    assert row(say("submit", "--all"), "linprobe@asl")[1] == "done"
    assert row(say("plan"), "pretrain@asl")[1] == "nothing"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["submit"], "name what to submit: --stage STAGE [NAME...] or --all"),
        (["submit", "--all", "--stage", "pretrain"], "name what to submit"),
        (["submit", "--all", "asl"], "names are entries of a stage: add --stage"),
        (["submit", "--stage", "pretrian"], "did you mean 'pretrain'?"),
        (["submit", "--stage", "pretrain", "als"], "did you mean 'asl'?"),
        (["submit", "--stage", "report"], "dvc repro makes it"),
        (["logs", "pretrain@asl"], "asl-pipe submit makes them"),
        (["cancel"], "name what to cancel"),
    ],
)
def test_wrong_input_is_one_line(say: Say, arguments: list[str], message: str) -> None:
    said = say(*arguments, code=2)
    assert message in said
    assert len(said.splitlines()) == 1


def test_status_shows_how_far_each_job_is(site: Any, say: Say) -> None:
    assert "no jobs" in say("status")
    say("submit", "--all")
    assert row(say("status"), "pretrain@asl")[1:4] == ["demo", "ACTIVE", "2"]
    site.run()
    said = say("status")
    assert row(said, "pretrain@asl")[1:6] == ["demo", "SUCCEEDED", "2", "n1", "7/7"]
    (site.cluster.folder / "faults.json").write_text('{"deaf": -1}')
    assert row(say("status"), "pretrain@asl")[2] == "SUCCEEDED"  # its result is there, queue or no


def test_an_unknown_state_is_said_and_nothing_is_submitted(site: Any, say: Say) -> None:
    say("submit", "--stage", "prepare")
    (site.cluster.folder / "faults.json").write_text('{"deaf": -1}')
    assert row(say("status"), "prepare@icons")[2] == "UNKNOWN"
    assert "the queue is not known" in say("plan")
    assert "nothing was submitted" in say("submit", "--all", code=1)
    assert len(site.cluster.all()) == 1


def test_logs_print_what_the_job_printed(site: Any, say: Say) -> None:
    site.stub(steps=7, fail=0)
    say("submit", "--stage", "prepare")
    assert "printed nothing yet" in say("logs", "prepare@icons")
    site.run()
    assert "rank 0 fails" in say("logs", "prepare@icons")
    assert say("logs", "1") == say("logs", "prepare@icons")
    assert say("logs", "prepare@icons", "-f").endswith(say("logs", "prepare@icons", "-n", "1"))
    assert "did you mean 'prepare@icons'?" in say("logs", "prepare@icon", code=2)


def test_a_cancelled_job_goes_on_when_it_is_submitted_again(site: Any, say: Say) -> None:
    site.stub(steps=60, step_s=0.05)
    say("submit", "--stage", "pretrain")
    job_id = site.run_until_step("pretrain@asl", 3)
    assert f"pretrain@asl: job {job_id} is told to end" in say("cancel", "pretrain@asl")
    site.cluster.run(until=lambda: site.cluster.read(job_id)["state"] == "CANCELLED")
    assert "none of them has a live job" in say("cancel", "prepare@icons")


def test_gc_keeps_what_a_commit_refers_to(site: Any, say: Say) -> None:
    say("submit", "--all")
    site.run()
    assert "nothing to delete" in say("gc")
    site.dvc("repro", "linprobe@asl")
    folder = site.root / ".asl/jobs"
    metrics = site.root / "runs/linprobe/asl.json"
    kept = json.loads(metrics.read_text())["fingerprint"]
    for command in (["add", "-f", str(metrics)], ["commit", "-qm", "Keep a result"]):
        subprocess.run(["git", *command], cwd=site.root, check=True)
    metrics.unlink()
    (site.root / "runs/pretrain/asl.json").unlink()
    before = {path.name for path in folder.glob("*/job.json")}
    dry = say("gc", "--days", "0", "--dry-run")
    assert "in no commit" in dry
    assert {path.name for path in folder.glob("*/job.json")} == before
    say("gc", "--days", "0")
    left = [json.loads(p.read_text())["name"] for p in folder.glob("*/job.json")]
    assert left == ["linprobe@asl"]
    state = json.loads(next(folder.glob("*/state.json")).read_text())
    assert state["fingerprint"] == kept
