"""submit, plan, status, logs, cancel, gc as they are typed."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from asl_core.engine.journal import Journal
from pipeline import cli
from pipeline.jobs import logs
from pipeline.jobs.claim import claim
from pipeline.jobs.folder import PROVISIONAL
from pipeline.jobs.verdict import Finding, Verdict
from pipeline.results.code import freeze, read_code
from pipeline.results.dvc_cache import DvcCache
from pipeline.submission import garbage as gc
from pipeline.submission.status import Explanations
from pipeline.tracking.mlflow.link import RunLink, is_shown, write_link

Say = Callable[..., str]
NAME = "prepare@icons"


@pytest.fixture
def say(say: Say, site: Any, monkeypatch: pytest.MonkeyPatch) -> Say:
    """Run a command line in the site and return what it printed."""
    monkeypatch.chdir(site.root)
    site.stub(steps=7)
    return say


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
        (["submit"], "say what to submit: --stage STAGE [NAME...] or --all"),
        (["submit", "--all", "--stage", "pretrain"], "say what to submit"),
        (["submit", "--all", "asl"], "names are entries of a stage: add --stage"),
        (["submit", "--stage", "pretrian"], "did you mean 'pretrain'?"),
        (["submit", "--stage", "pretrain", "als"], "did you mean 'asl'?"),
        (["submit", "--stage", "report"], "run dvc repro"),
        (["logs", "pretrain@asl"], "asl-pipe submit creates them"),
        (["cancel"], "say what to cancel"),
    ],
)
def test_wrong_input_is_one_line(say: Say, arguments: list[str], message: str) -> None:
    said = say(*arguments, code=2)
    assert message in said
    assert len(said.splitlines()) == 1


def test_a_suite_without_dvc_yaml_is_one_line(site: Any, say: Say) -> None:
    (site.root / "suites/half").mkdir(parents=True)
    shutil.copy(site.root / "params.yaml", site.root / "suites/half/params.yaml")
    said = say("plan", "half", code=2)
    assert "half/dvc.yaml: No such file" in said
    assert len(said.splitlines()) == 1


def test_a_broken_configuration_of_dvc_is_one_line(site: Any, say: Say) -> None:
    say("submit", "--stage", "prepare")
    site.run()
    (site.root / ".dvc/config").write_text("[core\n")
    said = say("status", code=2)
    assert "DVC cannot open" in said
    assert len(said.splitlines()) == 1


def test_what_editors_leave_in_the_code_is_in_no_plan(site: Any, say: Say) -> None:
    before = freeze(read_code(site.root), site.root / ".asl")
    for package in ("asl_core", "asl_core/data/sources", "pipeline"):
        (site.root / package / ".#cli.py").symlink_to("somebody@login1.4711:1")
    (site.root / "pipeline/gone.py").symlink_to("nowhere.py")
    assert row(say("plan"), "prepare@icons")[1] == "submit"
    assert read_code(site.root).digest == before


def test_status_shows_how_far_each_job_is(site: Any, say: Say) -> None:
    assert "no jobs" in say("status")
    say("submit", "--all")
    assert row(say("status"), "pretrain@asl")[1:4] == ["demo", "ACTIVE", "2"]
    site.run()
    said = say("status")
    assert row(said, "pretrain@asl")[1:6] == ["demo", "SUCCEEDED", "2", "n1", "7/7"]
    (site.cluster.folder / "faults.json").write_text('{"deaf": -1}')
    assert row(say("status"), "pretrain@asl")[2] == "SUCCEEDED"  # its result is there, queue or no


def test_status_tells_what_the_scheduler_knows_of_a_job_that_died_without_a_word(
    site: Any, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.stub(steps=4000, step_s=0.05)
    say("submit", "--stage", "pretrain")
    job_id = site.run_until_step("pretrain@asl", 3)
    site.cluster.signal(job_id, signal.SIGKILL)
    site.run()
    state = site.reports()["pretrain@asl"].paths.state
    state.write_text(json.dumps(json.loads(state.read_text()) | {"heartbeat": time.time() - 300}))
    assert "FAILED, exit -9" in say("status")
    asked = []
    monkeypatch.setattr(
        type(site.cluster).__mro__[1], "explain", lambda _, name: asked.append(name)
    )
    say("status")
    assert asked == [job_id]  # nobody asks about those that said how they ended


def test_explanations_are_asked_for_once_and_of_the_newest(site: Any) -> None:
    site.stub(steps=60, step_s=0.05)
    site.submit("pretrain")
    site.cluster.cancel(["1", "2"])
    report = site.reports()["pretrain@asl"]
    assert report.verdict is Verdict.LOST
    reports = [
        replace(report, attempts=[replace(report.attempts[-1], job_id=str(number))])
        for number in range(30)
    ]
    asked: list[str] = []

    def explain(job_id: str) -> str:
        asked.append(job_id)
        return "OUT_OF_MEMORY"

    explanations = Explanations(explain)
    for _ in range(2):
        shown = explanations.added_to(reports)
        assert sum("OUT_OF_MEMORY" in each.finding.detail for each in shown) == 20
    assert asked == [str(number) for number in range(10, 30)]


def test_a_requeued_job_that_waits_is_on_no_node(site: Any, say: Say) -> None:
    site.stub(steps=4000, step_s=0.05)
    say("submit", "--stage", "pretrain")
    job_id = site.run_until_step("pretrain@asl", 3)
    assert row(say("status"), "pretrain@asl")[4] == "n1"
    site.cluster.lose_node(job_id)
    assert "n1" not in row(say("status"), "pretrain@asl")


def test_an_unknown_state_is_said_and_nothing_is_submitted(site: Any, say: Say) -> None:
    say("submit", "--stage", "prepare")
    (site.cluster.folder / "faults.json").write_text('{"deaf": -1}')
    assert row(say("status"), "prepare@icons")[2] == "UNKNOWN"
    assert "the queue could not be read" in say("plan")
    assert "the queue could not be read" in say("submit", "--all", "--dry-run")
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
    site.stub(steps=4000, step_s=0.05)
    say("submit", "--stage", "pretrain")
    job_id = site.run_until_step("pretrain@asl", 3)
    assert f"pretrain@asl: cancelling job {job_id}" in say("cancel", "pretrain@asl")
    site.cluster.run(until=lambda: site.cluster.read(job_id)["state"] == "CANCELLED")
    assert "no live job to cancel" in say("cancel", "prepare@icons")


def test_a_plan_names_the_jobs_that_it_attaches_to(site: Any, say: Say) -> None:
    say("submit", "--stage", "pretrain")
    assert "job 2 is ACTIVE PENDING Priority; never run" in say("plan")


def test_logs_are_read_from_their_end(site: Any, say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "BLOCK", 16)
    say("submit", "--stage", "prepare")
    folder = site.reports()["prepare@icons"].paths.logs
    folder.mkdir(exist_ok=True)
    printed = [f"line {number} \u00e4\n" for number in range(40)]
    for name, begin in (("1_0.log", 0), ("1_1.log", 30)):
        (folder / name).write_text("".join(printed[begin : begin + 30 - begin // 3]))
    os.utime(folder / "1_0.log", (1, 1))
    for lines in (1, 7, 10, 11, 25, 100):
        assert say("logs", "prepare@icons", "-n", str(lines)) == "".join(
            [*printed[:30], *printed[30:50]][-lines:]
        )


def test_logs_ask_nobody_about_other_jobs(
    site: Any, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    say("submit", "--stage", "pretrain")
    site.run()
    asked: list[dict[str, Any]] = []

    def holds(_self: DvcCache, _root: Path, hashes: dict[str, Any]) -> bool:
        asked.append(hashes)
        return True

    monkeypatch.setattr(DvcCache, "holds", holds)
    say("logs", "prepare@icons")
    assert asked == []
    say("logs", "prepare@icons", "-f")
    assert [sorted(hashes) for hashes in asked] == [["data/icons", "runs/prepare/icons"]]


@pytest.fixture
def no_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let there be no journals to bring anywhere."""
    monkeypatch.setattr("pipeline.tracking.sync.sync_journals", lambda _root, _store: 0)


def test_sync_to_a_remote_says_what_it_is_to_do_there(
    site: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run_command(["sync", "--remote", "store"]) == 2
    assert "--remote says where --push sends to or --pull gets from" in capsys.readouterr().err


@pytest.mark.usefixtures("no_mlflow")
def test_sync_takes_finished_results_over_and_runs_nothing(site: Any, say: Say) -> None:
    say("submit", "--all")
    site.run()
    said = say("sync")
    assert "adopted: prepare@icons, pretrain@asl, linprobe@asl" in said
    assert "git add dvc.lock runs/pretrain/asl.json runs/linprobe/asl.json" in said
    assert "up to date" in site.dvc("status", "linprobe@asl")
    lock = (site.root / "dvc.lock").read_bytes()
    assert "adopted" not in say("sync")
    assert (site.root / "dvc.lock").read_bytes() == lock


@pytest.mark.usefixtures("no_mlflow")
def test_sync_leaves_out_what_was_made_from_other_inputs(
    site: Any, say: Say, caplog: pytest.LogCaptureFixture
) -> None:
    say("submit", "--stage", "prepare")
    site.run()
    say("sync")
    say("submit", "--stage", "pretrain")
    site.run()
    shard = site.root / "data/icons/shard"
    shard.unlink()
    shard.write_text("edited")
    assert "adopted" not in say("sync")
    assert "pretrain@asl: skipped" in caplog.text
    assert "its inputs in the workspace are not the ones" in caplog.text
    # should it be asked to all the same
    assert site.cache.adopt(site.root, ["pretrain@asl"]) == []
    assert not (site.root / "runs/pretrain/asl").exists()
    assert len(site.cluster.all()) == 2


def bring_journals(site: Any) -> None:
    """Let all journals be in MLflow, as far as their links say."""
    for journal in (site.root / ".asl/jobs").glob("*/journal"):
        link = RunLink(store="s", experiment_id="1", parent_run_id=None, run_id="r", suite="tiny",
                       stage="pretrain", key="asl", status="SUCCEEDED", complete=True)  # fmt: skip
        write_link(journal.parent, link)


def test_gc_keeps_journals_until_they_have_been_brought(site: Any, say: Say) -> None:
    say("submit", "--stage", "prepare")
    site.run()
    job = site.reports()["prepare@icons"].paths.folder
    assert "its journal is kept until" in say("gc", "--days", "0", "--unadopted")
    assert {path.name for path in job.iterdir()} >= {"journal", "job.json", "state.json"}
    assert not (job / "out").exists()
    assert "nothing to delete" in say("gc", "--days", "0", "--unadopted")
    bring_journals(site)
    say("gc", "--days", "0", "--unadopted")
    assert not job.exists()


def test_gc_keeps_a_result_that_no_dvc_lock_has_had_though_dvc_gc_took_its_files(
    site: Any, say: Say
) -> None:
    say("submit", "--stage", "prepare")
    site.run()
    bring_journals(site)
    job, manifest = site.reports()["prepare@icons"].paths.folder, site.state(NAME).manifest
    assert f"in no dvc.lock yet: {NAME};" in say("status")
    site.dvc("gc", "-w", "-f")
    assert not DvcCache().holds(site.root, manifest)
    said = say("gc", "--days", "0")
    assert f"in no dvc.lock: {NAME}; kept here" in said
    assert (job / "out/dataset/shard").exists()
    assert DvcCache().holds(site.root, manifest)
    site.dvc("repro", NAME)
    for command in (["add", "dvc.lock"], ["commit", "-qm", "Adopt"], ["rm", "-q", "dvc.lock"],
                    ["commit", "-qm", "Make it anew some day"]):  # fmt: skip
        subprocess.run(["git", *command], cwd=site.root, check=True)
    assert "in no dvc.lock" not in say("status")  # an earlier commit has it
    said = say("gc", "--days", "0")
    assert "in no dvc.lock" not in said
    assert not job.exists()


def test_gc_keeps_what_a_commit_refers_to(site: Any, say: Say) -> None:
    say("submit", "--all")
    site.run()
    bring_journals(site)
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


def test_gc_deletes_nothing_where_git_cannot_say_what_is_in_use(site: Any, say: Say) -> None:
    say("submit", "--all")
    site.run()
    (site.root / ".git/HEAD").write_text("nonsense\n")
    before = {*(site.root / ".asl/jobs").iterdir()}
    assert "it is needed to know which results are in use" in say("gc", "--days", "0", code=2)
    assert {*(site.root / ".asl/jobs").iterdir()} == before


def make_old(folder: Path) -> None:
    """Let a folder be as it was left two days ago."""
    then = time.time() - 2 * 86400
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (then, then), follow_symlinks=False)


def leave_run(site: Any, fingerprint: str) -> Path:
    """Leave what a killed `dvc repro` leaves; return its folder."""
    folder = site.root / ".asl/jobs" / fingerprint
    for name in ("ckpt/1.pt", "out/a", "out.2/a", "rank-1/a", "log.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    with Journal.open(folder / "journal") as journal:
        journal.end("INTERRUPTED")
    make_old(folder)
    return folder


def test_gc_takes_the_checkpoints_of_runs_without_a_job_and_keeps_their_journals(
    site: Any, say: Say
) -> None:
    killed = leave_run(site, "a" * 64)
    say("gc", "--days", "1")
    assert {path.name for path in killed.iterdir()} == {"journal", "log.txt"}
    young = leave_run(site, "b" * 64)
    (young / "journal/attempt-000.jsonl").touch()
    say("gc", "--days", "1")
    assert (young / "ckpt/1.pt").exists()
    referenced = leave_run(site, "c" * 64)
    (site.root / "some.json").write_text(json.dumps({"fingerprint": "c" * 64}))
    say("gc", "--days", "1")
    assert (referenced / "ckpt/1.pt").exists()
    assert list((site.root / ".asl/gone").iterdir()) == []


def test_gc_takes_features_that_no_evaluation_has_read_for_long(site: Any, say: Say) -> None:
    old, used = (site.root / ".asl/features" / "c0de" / name for name in ("old", "used"))
    for folder in (old, used):
        folder.mkdir(parents=True)
        (folder / "features.bin").write_bytes(b"1234")
    os.utime(old, (time.time() - 3 * 86400,) * 2)
    assert "features, not read for 3 days" in say("gc", "--days", "1", "--dry-run")
    say("gc", "--days", "1")
    assert (old.exists(), used.exists()) == (False, True)


def test_gc_takes_the_folder_in_which_a_collected_job_has_worked_and_no_other(
    site: Any, say: Say
) -> None:
    say("submit", "--stage", "pretrain")
    site.run()
    record, work = site.reports()["pretrain@asl"].paths.folder, site.work("pretrain@asl")
    assert record != work
    make_old(work)
    say("gc", "--days", "1")
    assert (work / "out").exists()  # its record is of today
    shutil.rmtree(record)
    say("gc", "--days", "1")
    assert [path.name for path in work.iterdir() if path.is_dir()] == ["journal"]


def test_gc_keeps_what_a_waiting_job_needs(site: Any, say: Say) -> None:
    say("submit", "--stage", "pretrain")
    site.cluster._write(site.cluster.read("2") | {"begin": time.time() + 1000})
    site.cluster.run(until=lambda: site.cluster.read("1")["state"] == "COMPLETED")
    bring_journals(site)
    record = site.reports()["prepare@icons"].paths.job
    say("gc", "--days", "0")
    assert record.exists()
    site.cluster.cancel(["2"])
    say("gc", "--days", "0", "--unadopted")
    assert not record.exists()


def test_gc_deletes_nothing_that_was_submitted_since_it_looked(site: Any, say: Say) -> None:
    site.stub(fail=0)
    say("submit", "--stage", "prepare")
    site.run()
    bring_journals(site)

    def find() -> list[gc.Garbage]:
        scratch, reports = site.root / ".asl", list(site.reports().values())
        return gc.find_garbage(scratch, reports, (), time.time(), 0.0, is_shown)

    (found,) = find()
    held = claim(site.root / ".asl/jobs", PROVISIONAL + str(found.recipe), time.time())
    assert held is not None
    assert gc.delete([found], site.root / ".asl", find, time.time()) == []
    assert found.folder.exists()  # somebody is about to submit it
    held.release()
    say("submit", "--stage", "prepare")
    assert gc.delete([found], site.root / ".asl", find, time.time()) == []
    assert found.folder.exists()


@pytest.mark.parametrize(("user", "kept"), [(None, False), ("somebody", True)])
def test_gc_keeps_what_another_users_queue_may_still_hold(
    site: Any, say: Say, user: str | None, kept: bool
) -> None:
    say("submit", "--stage", "prepare")
    site.run()
    bring_journals(site)
    (report,) = site.reports().values()
    attempts = [replace(a, user=user or a.user) for a in report.attempts]
    lost = replace(report, attempts=attempts, finding=Finding(Verdict.LOST))
    found = gc.find_garbage(site.root / ".asl", [lost], (), time.time(), 0.0, is_shown)
    assert (report.paths.folder in {item.folder for item in found}) != kept


def test_gc_leaves_code_that_is_about_to_be_used(site: Any) -> None:
    scratch = site.root / ".asl"
    digest = freeze(read_code(site.root), scratch)
    make_old(scratch / "code" / digest)

    def find() -> list[gc.Garbage]:
        return gc.find_garbage(scratch, (), (), time.time(), 1.0, is_shown)

    found = find()
    assert [item.folder.name for item in found] == [digest]
    freeze(read_code(site.root), scratch)
    assert find() == []
    assert gc.delete(found, scratch, lambda: found, time.time()) == []
    assert found[0].folder.is_dir()
    make_old(found[0].folder)
    gc.delete(find(), scratch, find, time.time())
    assert not found[0].folder.exists()


def test_gc_says_what_it_cannot_delete_and_goes_on(
    site: Any, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [leave_run(site, letter * 64) for letter in "ab"]
    remove = shutil.rmtree

    def busy(path: Path, **options: Any) -> None:
        if not options and not list(path.glob("1.pt")):
            raise OSError(16, "Device or resource busy", str(path))
        remove(path, **options)

    monkeypatch.setattr(gc.shutil, "rmtree", busy)
    said = say("gc", "--days", "1")
    assert said.count("Device or resource busy") == 6
    assert not any((folder / "ckpt").exists() for folder in folders)
    monkeypatch.undo()
    assert len(list((site.root / ".asl/gone").iterdir())) == 6


def test_gc_removes_what_submissions_have_left(site: Any, say: Say) -> None:
    say("submit", "--stage", "prepare")
    files = site.cluster.folder / "submissions"
    say("gc")
    assert len(list(files.iterdir())) == 1
    site.run()
    say("gc")
    assert list(files.iterdir()) == []
    site.cluster.set_fault("deaf", -1)
    assert "files of old submissions are kept" in say("gc")
