"""One live job per run, whoever submits it, however often, and whenever a client dies."""

import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fake_scheduler import FakeCluster

from pipeline.jobs.folder import JobFolder
from pipeline.jobs.job import read_attempts, token_in
from pipeline.jobs.verdict import Verdict
from pipeline.schedulers.port import SchedulerError
from pipeline.submission.job_reports import job_reports
from pipeline.submission.plan import Action
from pipeline.submission.submit import Outcome, submit

CLIENT = Path(__file__).with_name("submit_client.py")
DAG = ["prepare@icons", "pretrain@asl", "linprobe@asl"]
KILLS, CLIENTS = (20, 40) if os.environ.get("ASL_LONG_TESTS") else (6, 12)


def start_client(site, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, str(CLIENT), str(site.root), str(site.cluster.folder), *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | environment,
    )  # fmt: skip


def forget_jobs(site) -> None:
    """Begin anew, with a cluster that has never seen a job."""
    for folder in (site.root / ".asl", site.cluster.folder):
        shutil.rmtree(folder, ignore_errors=True)
    site.cluster = FakeCluster(site.cluster.folder)


def live_names(site) -> Counter[str]:
    """Count the live jobs of each run."""
    ended = ("COMPLETED", "FAILED", "CANCELLED")
    return Counter(job["name"] for job in site.cluster.all() if job["state"] not in ended)


def test_many_clients_at_once_submit_one_job(site) -> None:
    clients = [start_client(site, "prepare", PATIENCE="60") for _ in range(CLIENTS)]
    said = [client.communicate(timeout=240) for client in clients]
    assert [client.returncode for client in clients] == [0] * CLIENTS, said
    results = [json.loads(out.splitlines()[0])[0] for out, _ in said]
    assert Counter(outcome for _, outcome, _ in results) == {
        Outcome.SUBMITTED: 1, Outcome.ATTACHED: CLIENTS - 1,
    }  # fmt: skip
    assert {job_id for _, _, job_id in results} == {"1"}
    assert len(site.cluster.all()) == 1
    (record,) = (site.root / ".asl/jobs").glob("*/job.json")
    assert len(read_attempts(JobFolder(record.parent))) == 1
    left = [path.name for path in (site.root / ".asl/jobs").iterdir() if "claim" in path.name]
    assert left == []


def test_a_client_killed_at_any_moment_leaves_nothing_that_a_second_one_cannot_mend(site) -> None:
    moments = 0
    for _ in range(2):  # the second time DVC has hashed all files already
        forget_jobs(site)
        whole = start_client(site)
        out, err = whole.communicate(timeout=240)
        assert whole.returncode == 0, err
        moments = int(out.splitlines()[-1])
    assert moments > 40
    random_moments = random.Random(0).sample(range(1, moments + 1), KILLS)
    for moment in sorted(random_moments):
        forget_jobs(site)
        killed = start_client(site, DIE_AT=str(moment))
        killed.communicate(timeout=240)
        assert killed.returncode == -9, moment
        before = {job["id"] for job in site.cluster.all()}
        site.submit()
        assert live_names(site) == dict.fromkeys(DAG, 1), moment
        assert before <= {job["id"] for job in site.cluster.all()}
        assert all(report.verdict is Verdict.ACTIVE for report in site.reports().values())
        tokens = [token_in(job["comment"]) for job in site.cluster.all()]
        newest = [report.attempt.token for report in site.reports().values() if report.attempt]
        assert sorted(newest) == sorted(map(str, tokens)), moment


def test_a_dag_whose_client_was_killed_midway_ends_as_if_nothing_had_happened(site) -> None:
    site.stub(steps=7)
    killed = start_client(site, DIE_AT="60")
    killed.communicate(timeout=240)
    assert killed.returncode == -9
    site.submit()
    site.run()
    assert {r.verdict for r in site.reports().values()} == {Verdict.SUCCEEDED}
    assert site.encoder() == str(5 + sum(step**2 for step in range(1, 8)))
    assert len(site.cluster.all()) == 3


def test_a_scheduler_that_takes_a_job_and_reports_an_error_is_not_believed(site) -> None:
    site.cluster.set_fault("lie", 1)
    done = site.submit("prepare")["prepare@icons"]
    assert (done.outcome, done.job_id) == (Outcome.SUBMITTED, "1")
    assert site.submit("prepare")["prepare@icons"].outcome is Outcome.ATTACHED
    assert len(site.cluster.all()) == 1
    site.run()
    assert site.verdict("prepare@icons") is Verdict.SUCCEEDED


def test_a_client_that_dies_before_it_hears_the_answer_loses_no_job(site) -> None:
    site.cluster.set_fault("lie", 1)
    site.submit("prepare")
    # as if it had died before it noted the id: the attempt has a token only
    report = site.reports()["prepare@icons"]
    path = report.paths.attempts / "001.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"job_id": None}))
    assert site.verdict("prepare@icons") is Verdict.ACTIVE
    again = site.submit("prepare")["prepare@icons"]
    assert (again.outcome, again.job_id) == (Outcome.ATTACHED, "1")


def test_a_job_of_which_nobody_heard_is_submitted_again_after_a_while_and_not_before(site) -> None:
    site.cluster.set_fault("swallow", 1)
    done = site.submit("prepare")["prepare@icons"]
    assert done.outcome is Outcome.WAITING
    assert "timed out" in done.detail
    plan = site.plan("prepare")
    assert plan.entry("prepare@icons").action in (Action.WAIT, Action.SUBMIT)
    again = site.submit("prepare")["prepare@icons"]
    assert again.outcome is Outcome.SUBMITTED
    assert len(read_attempts(site.reports()["prepare@icons"].paths)) == 2
    assert len(site.cluster.all()) == 1


def test_a_job_that_arrives_late_gives_way_to_the_one_submitted_meanwhile(site) -> None:
    site.stub(steps=7)
    site.submit("prepare")
    site.run()
    site.submit("pretrain")
    first = site.cluster.read("2")
    # the first was thought lost, a second one was submitted, and then both are there
    (site.cluster.folder / "jobs/2.json").unlink()
    report = site.reports()["pretrain@asl"]
    path = report.paths.attempts / "001.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"job_id": None, "submitted": 0.0}))
    assert site.submit("pretrain")["pretrain@asl"].outcome is Outcome.SUBMITTED
    site.cluster._write(first | {"id": "9"})
    site.run()
    assert site.verdict("pretrain@asl") is Verdict.SUCCEEDED
    assert site.state("pretrain@asl").attempt == 2
    assert site.cluster.read("9")["exit_code"] == 0  # what waits for it must be able to begin
    journals = list((site.work("pretrain@asl") / "journal").iterdir())
    assert len(journals) == 1  # only one of them has worked


def test_a_refused_submission_says_why_and_may_be_tried_again(site) -> None:
    site.cluster.set_fault("refuse", 1)
    done = site.submit()
    assert done["prepare@icons"].outcome is Outcome.REFUSED
    assert "Invalid account" in done["prepare@icons"].detail
    assert done["pretrain@asl"].outcome is Outcome.HELD
    assert done["pretrain@asl"].detail == "prepare@icons: refused"
    assert site.cluster.all() == []
    assert site.verdict("prepare@icons") is Verdict.LOST
    assert site.submit("prepare")["prepare@icons"].outcome is Outcome.SUBMITTED


def test_a_scheduler_that_does_not_answer_makes_nothing_happen(site) -> None:
    site.submit("prepare")
    site.cluster.set_fault("deaf", -1)
    assert site.verdict("prepare@icons") is Verdict.UNKNOWN
    plan = site.plan()
    assert plan.entry("prepare@icons").action is Action.WAIT
    with pytest.raises(SchedulerError, match="nothing was submitted"):
        site.submit()
    site.cluster.set_fault("deaf", 0)
    assert len(site.cluster.all()) == 1
    site.run()
    site.cluster.set_fault("deaf", -1)
    # what has succeeded needs nobody's word
    assert site.verdict("prepare@icons") is Verdict.SUCCEEDED


def test_jobs_that_the_scheduler_has_forgotten_are_known_by_their_own_words(site) -> None:
    site.stub(steps=2)
    site.submit()
    site.run()
    site.cluster.forget_ended()
    assert {r.verdict for r in site.reports().values()} == {Verdict.SUCCEEDED}
    assert {each.outcome for each in site.submit().values()} == {Outcome.DONE}


def test_a_result_that_was_collected_from_the_cache_is_made_again(site) -> None:
    site.stub(steps=2)
    site.submit("pretrain")
    site.run()
    shutil.rmtree(site.root / ".dvc/cache")
    for work in (site.root / ".asl/jobs").glob("*/out"):
        shutil.rmtree(work)  # as asl-pipe gc does; as long as they are there, they are put back
    site.patience = replace(site.patience, settling_s=60.0)
    assert site.verdict("pretrain@asl") is Verdict.SETTLING
    site.patience = replace(site.patience, settling_s=0.0)
    assert site.verdict("pretrain@asl") is Verdict.LOST
    assert site.submit("pretrain")["pretrain@asl"].outcome is Outcome.SUBMITTED
    site.run()
    assert site.verdict("pretrain@asl") is Verdict.SUCCEEDED


def test_reports_are_read_without_dvc_when_nothing_has_succeeded(site) -> None:
    site.submit()

    class NoCache:
        def __getattr__(self, name: str) -> None:
            raise AssertionError(name)

    assert len(job_reports(site.root, site.cluster, NoCache())) == 3  # type: ignore[arg-type]


def test_of_the_jobs_of_others_nothing_is_known_but_their_results(site) -> None:
    site.submit("prepare")
    report = site.reports()["prepare@icons"]
    path = report.paths.attempts / "001.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"user": "somebody"}))
    (site.cluster.folder / "jobs/1.json").rename(site.cluster.folder / "kept")  # not mine to see
    assert site.verdict("prepare@icons") is Verdict.UNKNOWN
    assert "somebody" in site.reports()["prepare@icons"].finding.detail
    assert site.submit("prepare")["prepare@icons"].outcome is Outcome.WAITING
    (site.cluster.folder / "kept").rename(site.cluster.folder / "jobs/1.json")
    site.run()
    assert site.verdict("prepare@icons") is Verdict.SUCCEEDED


def test_a_job_cancelled_before_it_began_can_be_submitted_again_at_once(site) -> None:
    site.submit("prepare")
    site.cluster.cancel(["1"])
    assert site.verdict("prepare@icons") is Verdict.LOST
    assert site.submit("prepare")["prepare@icons"].job_id == "2"


def test_a_job_that_replaced_a_blocked_one_is_not_replaced_by_an_older_plan(site) -> None:
    site.stub(fail=0)
    site.submit()
    site.run()
    assert site.verdict("pretrain@asl") is Verdict.BLOCKED
    older, newer = site.plan(), site.plan()
    assert older.entry("pretrain@asl").action is Action.REPLACE
    first = {each.name: each for each in submit(newer, site.services)}
    second = {each.name: each for each in submit(older, site.services)}
    assert {each.outcome for each in first.values()} == {Outcome.SUBMITTED}
    assert {each.outcome for each in second.values()} == {Outcome.ATTACHED}
    assert live_names(site) == dict.fromkeys(DAG, 1)
    assert {n: e.job_id for n, e in first.items()} == {n: e.job_id for n, e in second.items()}


def test_what_was_made_since_the_plan_holds_nothing_back(site) -> None:
    site.stub(steps=2)
    plan = site.plan()
    site.submit("prepare")
    site.run()
    done = {each.name: each.outcome for each in submit(plan, site.services)}
    assert done == {
        "prepare@icons": Outcome.DONE,
        "pretrain@asl": Outcome.SUBMITTED,
        "linprobe@asl": Outcome.SUBMITTED,
    }
    site.run()
    assert {report.verdict for report in site.reports().values()} == {Verdict.SUCCEEDED}


def test_a_run_whose_job_has_ended_since_the_plan_is_done(site) -> None:
    site.stub(steps=2)
    site.submit()
    plan = site.plan()
    site.run()
    assert {each.outcome for each in submit(plan, site.services)} == {Outcome.DONE}
    assert len(site.cluster.all()) == 3


HOLD = """
import fcntl, sys, time
with open(sys.argv[1], "w") as lock:
    fcntl.lockf(lock, fcntl.LOCK_EX)
    print("held", flush=True)
    time.sleep(60)
"""


@contextlib.contextmanager
def local_run(site, name: str) -> Iterator[None]:
    """Hold the lock of a run as `dvc repro` does while it makes it."""
    work = JobFolder.of(site.root / ".asl", site.plan().fingerprint_of(name))
    work.folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", HOLD, str(work.lock)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        try:
            yield
        finally:
            holder.kill()


def test_a_run_that_a_local_process_makes_is_not_submitted_beside_it(site) -> None:
    with local_run(site, "prepare@icons"):
        done = site.submit("prepare")["prepare@icons"]
        assert done.outcome is Outcome.WAITING
        assert done.detail == f"runs in a local process on {socket.gethostname()}"
    assert site.cluster.all() == []
    assert site.submit("prepare")["prepare@icons"].outcome is Outcome.SUBMITTED


def test_a_job_does_not_work_beside_a_local_process_on_the_same_run(site) -> None:
    site.submit("prepare")
    with local_run(site, "prepare@icons"):
        site.run()
    report = site.reports()["prepare@icons"]
    assert report.verdict is Verdict.FAILED
    assert f"is running it on {socket.gethostname()}" in report.finding.detail
    site.submit("prepare")
    site.run()
    assert site.reports()["prepare@icons"].verdict is Verdict.SUCCEEDED
