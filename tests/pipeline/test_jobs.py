"""Runs that are handed to a cluster: their results come home, whatever happens on the way.

The cluster is a fake that starts real processes; DVC is real; stages add numbers up.
"""

import json
import shutil
import signal
import time
from pathlib import Path

import pytest
from stub_dag import SEVEN_STEPS

from pipeline.errors import UserError
from pipeline.jobs.journal import effective_points, read_records
from pipeline.jobs.state import RunStatus
from pipeline.jobs.verdict import Verdict
from pipeline.results.dvc_cache import DvcCache
from pipeline.submission.plan import Action
from pipeline.submission.put_back import put_back_results, unadopted_reports
from pipeline.submission.submit import Outcome

DAG = ["prepare@icons", "pretrain@asl", "linprobe@asl"]


def outcomes(done) -> dict[str, Outcome]:
    return {name: each.outcome for name, each in done.items()}


def starts(site) -> list[int]:
    """Return after which step each start of the pre-training has gone on."""
    records = read_records(site.work("pretrain@asl") / "journal")
    return [record.body["step"] for record in records if record.kind == "resume"]


def test_a_dag_submitted_from_nothing_is_adopted_by_dvc(site) -> None:
    site.stub(steps=7)
    plan = site.plan()
    assert [entry.name for entry in plan.entries] == DAG
    assert [entry.action for entry in plan.entries] == [Action.SUBMIT] * 3
    assert plan.entry("linprobe@asl").needs == ("prepare@icons", "pretrain@asl")
    assert plan.entry("pretrain@asl").why == ("never run", "data/icons does not exist yet")
    assert outcomes(site.submit()) == dict.fromkeys(DAG, Outcome.SUBMITTED)
    assert len(site.cluster.all()) == 3
    assert [job["after"] for job in site.cluster.all()] == [[], ["1"], ["1", "2"]]
    site.run()
    assert {name: report.verdict for name, report in site.reports().items()} == dict.fromkeys(
        DAG, Verdict.SUCCEEDED
    )
    assert not (site.root / "data").exists()
    assert not (site.root / "runs").exists()
    assert not (site.root / "dvc.lock").exists()
    said = site.dvc("repro", "linprobe@asl")
    assert said.count("is cached - skipping run") == 3
    assert (site.root / "runs/encoder/asl/encoder.safetensors").read_text() == SEVEN_STEPS
    for name in DAG:
        assert "up to date" in site.dvc("status", name)
    metrics = json.loads((site.root / "runs/linprobe/asl.json").read_text())
    assert metrics["fingerprint"] == site.cache.identify(site.root, "linprobe@asl").fingerprint
    assert outcomes(site.submit()) == dict.fromkeys(DAG, Outcome.DONE)
    assert len(site.cluster.all()) == 3


def test_dvc_gc_before_adoption_loses_no_result(site) -> None:
    """It keeps what dvc.lock names; the jobs' folders still have the files."""
    site.stub(steps=7)
    site.submit()
    site.run()
    assert [r.job.name for r in unadopted_reports(site.root, list(site.reports().values()))] == DAG
    site.dvc("gc", "-w", "-f")
    fresh = DvcCache()
    manifests = {name: site.state(name).manifest for name in DAG}
    assert not any(fresh.holds(site.root, manifest) for manifest in manifests.values())
    encoder = site.work("pretrain@asl") / "out/encoder/encoder.safetensors"
    right = encoder.read_bytes()
    encoder.unlink()  # the cache may share it
    encoder.write_bytes(b"something else")
    assert put_back_results(site.root, fresh) == ["linprobe@asl", "prepare@icons"]
    encoder.write_bytes(right)
    assert put_back_results(site.root, fresh) == ["pretrain@asl"]
    assert site.dvc("repro", "linprobe@asl").count("is cached - skipping run") == 3
    assert (site.root / "runs/encoder/asl/encoder.safetensors").read_text() == SEVEN_STEPS
    assert unadopted_reports(site.root, list(site.reports().values())) == []


def test_a_job_says_how_far_it_is_and_where(site) -> None:
    site.stub(steps=7)
    site.submit("pretrain")
    site.run()
    state = site.state("pretrain@asl")
    assert (state.status, state.step, state.total_steps) == (RunStatus.SUCCEEDED, 7, 7)
    assert (state.nodes, state.job_id, state.exit_code) == ("n1", "2", 0)
    assert state.images_per_s == 8.0
    work = site.work("pretrain@asl")
    tags = {}
    for record in read_records(work / "journal"):
        tags |= record.body["values"] if record.kind == "tags" else {}
    assert tags["fingerprint"] == state.fingerprint
    assert (tags["job.id"], tags["job.nodes"]) == ("2", "n1")
    assert tags["job.scheduler"] == "fake_scheduler:fake"
    assert tags["encoder_fingerprint" if "encoder_fingerprint" in tags else "stage"]
    assert not (work / "ckpt").exists()
    assert not (site.reports()["pretrain@asl"].paths.inputs).exists()


def test_a_linear_probe_knows_which_run_made_its_encoder(site) -> None:
    site.stub(steps=2)
    site.submit()
    site.run()
    tags = {}
    for record in read_records(site.work("linprobe@asl") / "journal"):
        tags |= record.body["values"] if record.kind == "tags" else {}
    assert tags["encoder_fingerprint"] == site.state("pretrain@asl").fingerprint


def test_what_is_submitted_twice_is_one_job(site) -> None:
    site.stub(steps=40, step_s=0.1)  # it must not end before it is submitted for the third time
    first = site.submit("pretrain")
    second = site.submit("pretrain")
    assert outcomes(second) == {
        "prepare@icons": Outcome.ATTACHED, "pretrain@asl": Outcome.ATTACHED,
    }  # fmt: skip
    assert second["pretrain@asl"].job_id == first["pretrain@asl"].job_id
    site.cluster.run(until=lambda: site.cluster.read("1")["state"] == "COMPLETED")
    # prepare has ended: the same run has DVC's key now, and its job the name from before
    third = site.submit("pretrain")
    assert third["prepare@icons"].outcome is Outcome.DONE
    assert third["pretrain@asl"].outcome is Outcome.ATTACHED
    assert third["pretrain@asl"].fingerprint == first["pretrain@asl"].fingerprint
    site.run()
    assert len(site.cluster.all()) == 2


def test_params_edited_while_a_job_runs_do_not_reach_it(site) -> None:
    site.stub(steps=30, step_s=0.3)
    site.submit("prepare")
    site.run()
    site.dvc("repro", "prepare@icons")
    site.submit("pretrain")
    site.run_until_step("pretrain@asl", 3)
    lock = (site.root / "dvc.lock").read_bytes()
    old = site.plan("pretrain").fingerprint_of("pretrain@asl")
    site.edit("params.yaml", "epochs: 2", "epochs: 3")
    entry = site.plan("pretrain").entry("pretrain@asl")
    assert entry.action is Action.SUBMIT
    assert entry.fingerprint != old
    ((other, differs),) = entry.others
    assert other.paths.fingerprint == old
    assert differs == ("experiments.asl.epochs 2 -> 3",)
    site.run()
    assert site.state("pretrain@asl").fingerprint == old
    assert (site.root / "dvc.lock").read_bytes() == lock
    assert site.plan("pretrain").entry("pretrain@asl").action is Action.SUBMIT
    site.edit("params.yaml", "epochs: 3", "epochs: 2")
    assert site.plan("pretrain").entry("pretrain@asl").action is Action.NOTHING
    assert site.encoder() == str(5 + sum(step**2 for step in range(1, 31)))
    assert len(site.cluster.all()) == 2


def test_code_broken_after_submission_does_not_reach_a_job(site) -> None:
    site.stub(steps=7)
    site.submit("pretrain")
    kept = {}
    for path in ("pipeline/stages/pretrain.py", "pipeline/worker/main.py", "asl_core/errors.py"):
        kept[path] = (site.root / path).read_text()
        (site.root / path).write_text("this is no Python\n")
    site.run()
    for path, text in kept.items():
        (site.root / path).write_text(text)
    assert site.verdict("pretrain@asl") is Verdict.SUCCEEDED
    assert site.encoder() == SEVEN_STEPS
    report = site.reports()["pretrain@asl"]
    assert report.attempt is not None
    assert report.paths.source.resolve().name == report.attempt.terms.snapshot


def test_a_job_warned_of_its_time_limit_goes_on_where_it_was(site) -> None:
    steps = 160  # so many that it still runs when it is asked for again, on a busy machine too
    site.stub(steps=steps, step_s=0.05)
    site.submit("pretrain")
    job_id = site.run_until_step("pretrain@asl", 3)
    site.cluster.signal(job_id, signal.SIGUSR1)
    site.run(until=lambda: site.cluster.read(job_id)["restarts"] == 1)
    interrupted = site.state("pretrain@asl")
    assert (interrupted.status, interrupted.stopped_by) == (RunStatus.INTERRUPTED, ("SIGUSR1",))
    assert site.verdict("pretrain@asl") is Verdict.ACTIVE
    assert site.submit("pretrain")["pretrain@asl"].outcome is Outcome.ATTACHED
    site.run()
    state = site.state("pretrain@asl")
    assert (state.status, state.restarts, state.job_id) == (RunStatus.SUCCEEDED, 1, job_id)
    assert site.encoder() == str(5 + sum(step**2 for step in range(1, steps + 1)))
    journal = site.root / "runs/pretrain/asl/journal"
    starts = [r.body["step"] for r in read_records(journal) if r.kind == "resume"]
    assert starts[0] == 0
    assert starts[1] >= 3
    assert [step for step, _, _ in effective_points(journal)["pretrain/loss"]] == [
        *range(1, steps + 1)
    ]


def test_a_preempted_job_goes_on_where_it_was(site) -> None:
    site.stub(steps=40, step_s=0.05)
    site.submit("pretrain")
    job_id = site.run_until_step("pretrain@asl", 3)
    site.cluster.preempt(job_id)
    site.run()
    state = site.state("pretrain@asl")
    assert (state.status, state.restarts) == (RunStatus.SUCCEEDED, 1)
    assert site.encoder() == str(5 + sum(step**2 for step in range(1, 41)))
    assert len(site.cluster.all()) == 2


def test_where_requeueing_is_forbidden_a_new_job_goes_on_and_what_waits_follows_it(site) -> None:
    site.ask(default={"requeue": "resubmit"})
    site.stub(steps=40, step_s=0.05)
    done = site.submit()
    job_id = site.run_until_step("pretrain@asl", 3)
    site.cluster.signal(job_id, signal.SIGUSR2)
    site.run()
    assert {report.verdict for report in site.reports().values()} == {Verdict.SUCCEEDED}
    report = site.reports()["pretrain@asl"]
    assert [attempt.restarts for attempt in report.attempts] == [0, 1]
    assert report.job_id != done["pretrain@asl"].job_id
    assert report.state is not None
    assert report.state.restarts == 1
    probe = site.reports()["linprobe@asl"]
    assert [attempt.after for attempt in probe.attempts][-1] == (report.job_id,)
    assert site.encoder() == str(5 + sum(step**2 for step in range(1, 41)))


def test_a_cancelled_job_stays_where_it_was_until_it_is_submitted_again(site) -> None:
    site.stub(steps=40, step_s=0.05)
    site.submit("pretrain")
    job_id = site.run_until_step("pretrain@asl", 3)
    site.cluster.cancel([job_id])
    site.run()
    state = site.state("pretrain@asl")
    assert (state.status, state.stopped_by) == (RunStatus.INTERRUPTED, ("SIGTERM",))
    assert site.cluster.read(job_id)["state"] == "CANCELLED"
    assert site.verdict("pretrain@asl") is Verdict.LOST
    again = site.submit("pretrain")["pretrain@asl"]
    assert again.outcome is Outcome.SUBMITTED
    site.run()
    starts = [
        record.body["step"]
        for record in read_records(site.work("pretrain@asl") / "journal")
        if record.kind == "resume"
    ]
    assert starts[1] >= 3
    assert site.encoder() == str(5 + sum(step**2 for step in range(1, 41)))


def test_a_job_that_is_interrupted_too_often_fails(site) -> None:
    site.ask(pretrain={"max_restarts": 1})
    site.stub(steps=4000, step_s=0.05)
    site.submit("pretrain")
    job_id = site.run_until_step("pretrain@asl", 3)
    site.cluster.signal(job_id, signal.SIGUSR1)
    site.run(until=lambda: site.cluster.read(job_id)["restarts"] == 1)
    site.run_until_step("pretrain@asl", 30)
    site.cluster.signal(job_id, signal.SIGUSR1)
    site.run()
    state = site.state("pretrain@asl")
    assert state.status is RunStatus.FAILED
    assert "max_restarts is 1" in (state.error or "")
    assert site.verdict("pretrain@asl") is Verdict.FAILED


def test_a_process_of_a_lost_node_cannot_write_over_its_successor(site) -> None:
    gate = site.root.with_name("gate-")
    site.stub(steps=60, step_s=0.01, gate=[33, str(gate)])
    site.submit("pretrain")
    job_id = site.run_until_step("pretrain@asl", 33)
    site.cluster.lose_node(job_id)
    (orphan,) = site.cluster.orphans
    assert orphan.poll() is None
    site.run(until=lambda: starts(site) == [0, 30])  # its successor has taken over
    gate.with_name("gate-0").touch()
    assert orphan.wait(60) == 75
    gate.with_name("gate-1").touch()
    site.run()
    state = site.state("pretrain@asl")
    assert (state.status, state.restarts) == (RunStatus.SUCCEEDED, 1)
    assert state.pid != orphan.pid
    records = read_records(site.work("pretrain@asl") / "journal")
    ends = {r.attempt: r.body["status"] for r in records if r.kind == "end"}
    assert ends == {0: "INTERRUPTED", 1: "SUCCEEDED"}
    log = (site.reports()["pretrain@asl"].paths.logs / f"{job_id}_0.log").read_text()
    assert "was given up" in log
    assert site.encoder() == str(5 + sum(step**2 for step in range(1, 61)))


def test_what_a_lost_process_still_writes_is_not_in_its_successors_outputs(site) -> None:
    gate = site.root.with_name("gate-")
    site.stub(steps=7, gate=[7, str(gate)])
    site.submit("pretrain")
    job_id = site.run_until_step("pretrain@asl", 7)
    site.cluster.lose_node(job_id)
    (orphan,) = site.cluster.orphans
    site.run(until=lambda: starts(site) == [0, 5])
    gate.with_name("gate-0").touch()
    assert orphan.wait(60) == 75
    gate.with_name("gate-1").touch()
    site.run()
    assert site.state("pretrain@asl").restarts == 1
    assert site.encoder() == SEVEN_STEPS
    written = [path.name for path in (site.root / "runs/pretrain/asl").glob("start_*")]
    assert written == ["start_1"]
    assert [path.name for path in site.work("pretrain@asl").glob("out*")] == ["out"]


def test_a_blocked_job_is_replaced_when_what_it_needs_was_made_elsewhere(site) -> None:
    site.stub(fail=0)
    site.submit("pretrain")
    site.run()
    assert site.verdict("pretrain@asl") is Verdict.BLOCKED
    here = {"ASL_HERE": "1", "PYTHONPATH": site.python_path}
    site.dvc("repro", "prepare@icons", **here)
    site.stub(steps=7)
    done = site.submit("pretrain")
    assert done["prepare@icons"].outcome is Outcome.DONE
    assert done["pretrain@asl"].outcome is Outcome.SUBMITTED
    site.run()
    assert site.encoder() == SEVEN_STEPS


def test_a_failed_job_leaves_its_traceback_and_what_waits_for_it_is_shown(site) -> None:
    site.stub(fail=0)
    site.submit("prepare")
    site.run()
    state = site.state("prepare@icons")
    assert (state.status, state.exit_code) == (RunStatus.FAILED, 1)
    assert "in run" in (state.error or "")
    assert (state.error or "").rstrip().endswith("ZeroDivisionError: the stub of rank 0 fails")
    done = site.submit()
    assert outcomes(done) == dict.fromkeys(DAG, Outcome.SUBMITTED)
    site.run()
    assert {name: r.verdict for name, r in site.reports().items()} == {
        "prepare@icons": Verdict.FAILED,
        "pretrain@asl": Verdict.BLOCKED,
        "linprobe@asl": Verdict.BLOCKED,
    }
    assert "rank 0 fails" in site.reports()["prepare@icons"].finding.detail
    # once the cause is gone, all of it goes on
    site.stub(steps=7)
    plan = site.plan()
    assert [entry.action for entry in plan.entries] == [
        Action.SUBMIT, Action.REPLACE, Action.REPLACE,
    ]  # fmt: skip
    site.submit()
    site.run()
    assert site.encoder() == SEVEN_STEPS
    assert [job["state"] for job in site.cluster.all()].count("CANCELLED") == 2


def test_an_input_that_is_wrong_is_one_line_and_no_traceback(site) -> None:
    site.submit("prepare")
    record = site.reports()["prepare@icons"].paths
    text = record.params.read_text()
    record.params.write_text(text.replace("source: icons", "source: icnos"))
    site.run()
    state = site.state("prepare@icons")
    assert (state.status, state.exit_code) == (RunStatus.FAILED, 2)
    assert "Traceback" not in (state.error or "")
    assert "did you mean 'icons'" in (state.error or "")


def test_a_full_disk_is_a_failure_that_says_so_and_what_was_done_is_kept(site) -> None:
    site.stub(steps=7, full="/dev/full")
    site.submit("pretrain")
    site.run()
    state = site.state("pretrain@asl")
    assert state.status is RunStatus.FAILED
    assert "No space left on device" in (state.error or "")
    assert not list((site.root / ".dvc/cache/runs").glob(f"*/{state.fingerprint}"))
    site.stub(steps=7)
    site.submit("pretrain")
    site.run()
    assert site.encoder() == SEVEN_STEPS


@pytest.mark.parametrize("how", ["raises", "is killed"])
def test_one_process_that_fails_ends_the_whole_job(site, how: str) -> None:
    site.ask(pretrain={"tasks_per_node": 2})
    site.stub(steps=4000, step_s=0.05, **({"fail": 1} if how == "raises" else {}))
    site.submit("pretrain")
    if how == "is killed":
        job_id = site.run_until_step("pretrain@asl", 3)
        site.cluster.signal(job_id, signal.SIGKILL, rank=1)
    site.run(until=lambda: site.cluster.is_idle())
    written = (site.work("pretrain@asl") / "ckpt").glob("*.json")
    assert max((int(path.stem) for path in written), default=0) < 3995  # which is its last
    if how == "raises":
        state = site.state("pretrain@asl")
        assert state.status is RunStatus.FAILED
        assert "process 1" in (state.error or "")
        assert "ZeroDivisionError: the stub of rank 1 fails" in (state.error or "")
        assert site.verdict("pretrain@asl") is Verdict.FAILED
        ends = [r for r in read_records(site.work("pretrain@asl") / "journal") if r.kind == "end"]
        assert ends[-1].body["status"] == "FAILED"
    else:
        time.sleep(1.1)
        assert site.verdict("pretrain@asl") is Verdict.LOST


def test_several_processes_of_a_job_are_interrupted_and_go_on_together(site) -> None:
    site.ask(pretrain={"tasks_per_node": 2})
    site.stub(steps=40, step_s=0.05, stop_s=1.0)  # the others have ended long before
    site.submit("pretrain")
    job_id = site.run_until_step("pretrain@asl", 3)
    site.cluster.signal(job_id, signal.SIGUSR1)
    site.run()
    state = site.state("pretrain@asl")
    assert (state.status, state.restarts) == (RunStatus.SUCCEEDED, 1)
    assert site.encoder() == str(5 + sum(step**2 for step in range(1, 41)))


def test_a_result_that_is_there_when_a_job_begins_is_taken(site) -> None:
    site.submit("prepare")
    site.run()
    site.dvc("repro", "prepare@icons")
    site.submit("pretrain")
    fingerprint = site.plan("pretrain").fingerprint_of("pretrain@asl")
    # meanwhile somebody makes the same, in a clone with the same cache: it knows of no job
    site.stub(fail=0)
    jobs = site.root / ".asl/jobs"
    away = jobs.rename(jobs.with_name("away"))
    site.dvc("repro", "pretrain@asl", STUB=json.dumps({"steps": 7}), PYTHONPATH=site.python_path)
    shutil.rmtree(jobs)
    away.rename(jobs)
    site.run()
    assert site.verdict("pretrain@asl") is Verdict.SUCCEEDED
    assert site.state("pretrain@asl").fingerprint == fingerprint


def test_a_run_can_be_made_anew_although_there_is_a_result(site) -> None:
    site.stub(steps=7)
    site.submit()
    site.run()
    site.dvc("repro", "linprobe@asl")
    first = site.state("pretrain@asl").manifest["runs/pretrain/asl"]
    done = site.submit("pretrain", force=True, downstream=True)
    assert outcomes(done) == {
        "prepare@icons": Outcome.DONE,
        "pretrain@asl": Outcome.SUBMITTED,
        "linprobe@asl": Outcome.SUBMITTED,
    }
    site.run()
    assert {report.verdict for report in site.reports().values()} == {Verdict.SUCCEEDED}
    second = site.state("pretrain@asl").manifest["runs/pretrain/asl"]
    assert second != first  # its journal says another time
    folder = site.root / ".dvc/cache/runs"
    key = str(site.state("pretrain@asl").fingerprint)
    assert len(list((folder / key[:2] / key).iterdir())) == 2


def test_runs_for_which_there_is_no_room_wait_for_another_submission(site) -> None:
    site.ask(default={"max_queued": 2})
    site.stub(steps=2)
    done = site.submit()
    assert outcomes(done) == dict(
        zip(DAG, (Outcome.SUBMITTED, Outcome.SUBMITTED, Outcome.HELD), strict=True)
    )
    site.run()
    assert site.submit()["linprobe@asl"].outcome is Outcome.SUBMITTED
    site.run()
    assert site.verdict("linprobe@asl") is Verdict.SUCCEEDED


def test_the_room_of_one_stage_is_not_that_of_another(site) -> None:
    site.ask(prepare={"max_queued": 1}, pretrain={"max_queued": 1})
    done = site.submit()
    assert outcomes(done) == dict(
        zip(DAG, (Outcome.SUBMITTED, Outcome.HELD, Outcome.HELD), strict=True)
    )
    assert done["pretrain@asl"].detail == "the queue holds 1 job of asl-pipe, max_queued is 1"
    site.ask(prepare={"max_queued": 1}, pretrain={"max_queued": 2})
    assert site.submit("pretrain")["pretrain@asl"].outcome is Outcome.SUBMITTED
    assert site.submit()["linprobe@asl"].outcome is Outcome.SUBMITTED


def test_an_imported_encoder_goes_with_its_job(site) -> None:
    site.edit(
        "params.yaml", "linprobe:\n",
        "  theirs: {method: imported, path: encoders/theirs, sha256: " + "ab" * 32
        + ", dataset: icons}\nlinprobe:\n",
    )  # fmt: skip
    with pytest.raises(UserError, match="asl-pipe import-encoder"):
        site.plan("pretrain", "theirs")
    folder = site.root / "encoders/theirs"
    folder.mkdir(parents=True)
    (folder / "encoder.safetensors").write_text("twelve bytes")
    site.stub(steps=2)
    site.submit("pretrain", "theirs")
    (folder / "encoder.safetensors").unlink()  # the job does not look here
    site.run()
    assert site.verdict("pretrain@theirs") is Verdict.SUCCEEDED
    site.dvc("repro", "pretrain@theirs")
    made = site.root / "runs/encoder/theirs/encoder.safetensors"
    assert made.read_text() == str(12 + 1 + 4)


def test_a_sweep_is_handed_over_at_once_each_run_with_a_record_of_its_own(site) -> None:
    entry = "  asl: {method: asl, dataset: icons, model: vit-demo, epochs: 2, warmup_epochs: 1}\n"
    more = "".join(entry.replace("asl:", f"asl-{n}:").replace("epochs: 2", f"epochs: {n}")
                   for n in range(3, 7))  # fmt: skip
    site.edit("params.yaml", entry, entry + more)
    site.stub(steps=2)
    done = site.submit("pretrain")
    ids = [each.job_id for name, each in done.items() if name.startswith("pretrain")]
    assert sorted(ids) == [f"2_{n}" for n in range(5)]
    site.run()
    verdicts = {name: report.verdict for name, report in site.reports().items()}
    assert list(verdicts.values()) == [Verdict.SUCCEEDED] * 6
    assert len({site.state(name).fingerprint for name in verdicts}) == 6


def test_a_report_is_no_job(site) -> None:
    with pytest.raises(UserError, match="run dvc repro"):
        site.plan("report")
    with pytest.raises(UserError, match="did you mean 'pretrain'"):
        site.plan("pretrian")
    with pytest.raises(UserError, match="did you mean 'asl'"):
        site.plan("pretrain", "alsl")


def test_nothing_calls_dvc_commit() -> None:
    root = Path(__file__).parents[2] / "pipeline"
    for path in root.rglob("*.py"):
        assert "dvc commit" not in path.read_text()
