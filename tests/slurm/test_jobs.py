"""Runs that are handed to a real Slurm from the command line: their results come home.

DVC, Slurm and all processes are real; stages add numbers up. Only faults are injected.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from lab import Lab, sum_after
from two_nodes import TwoNodes

from pipeline.jobs.job import read_attempts
from pipeline.jobs.state import RunStatus
from pipeline.jobs.verdict import Verdict
from pipeline.schedulers.port import JobPhase

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

DAG = ["prepare@icons", "pretrain@asl", "linprobe@asl"]
LONGER_THAN_A_WARNING_TAKES = {"steps": 150, "step_s": 0.4}
"""Slurm looks every half minute whose time is running out, and warns whom it may not see again in
time: `WARNING` before the end of a minute comes 15 to 45 s after the beginning."""
WARNING = 15
KILLS, CLIENTS = (20, 40) if os.environ.get("ASL_LONG_TESTS") else (6, 12)
"""tests/pipeline does the same more often on a fake cluster, in less time."""


@pytest.fixture
def lab(stub_project: Path, cluster: TwoNodes) -> Lab:
    """A project with stub stages, on the cluster without accounting."""
    return Lab(stub_project, cluster)


@pytest.fixture(scope="module")
def prepared_template(
    stub_template: Path, repro: Callable[..., None], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Make a project with stub stages and its data once, without Slurm."""
    root = tmp_path_factory.mktemp("prepared") / "template"
    shutil.copytree(stub_template, root)
    repro(root, "prepare@icons")
    shutil.rmtree(root / ".asl")
    return root


@pytest.fixture
def prepared(
    prepared_template: Path,
    copy_project: Callable[[Path, Path], Path],
    tmp_path: Path,
    cluster: TwoNodes,
) -> Lab:
    """The same on the cluster without accounting."""
    return Lab(copy_project(prepared_template, tmp_path / "project"), cluster)


def processes_of_session(session: int) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (OSError, psutil.Error):
            continue
    return found


def read_until(process: "subprocess.Popen[str]", text: str) -> None:
    """Read what a process prints until a text is there."""
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if text in said:
            return
    pytest.fail(f"{text!r} is not in {said}")


def submit_and_come_home(lab: Lab) -> None:
    """Submit from a shell, kill the shell, and find the results later."""
    shell = lab.start("bash")
    assert shell.stdin is not None
    shell.stdin.write("asl-pipe submit --all; echo code $?\n")
    shell.stdin.flush()
    read_until(shell, "code 0")
    assert [process.pid for process in processes_of_session(shell.pid)] == [shell.pid]
    os.killpg(shell.pid, signal.SIGKILL)
    shell.communicate()
    lab.wait_for("linprobe@asl", Verdict.SUCCEEDED)
    assert not (lab.root / "data").exists()
    assert not (lab.root / "dvc.lock").exists()
    lab.adopt(*DAG)
    assert (lab.root / "runs/encoder/asl/encoder.safetensors").read_text() == sum_after(7)
    assert "submitted" not in lab.submit("--all")
    assert len(lab.queue()) == 3


def test_nothing_is_left_behind_by_a_submission_and_its_results_come_home(lab: Lab) -> None:
    lab.stub(steps=7)
    submit_and_come_home(lab)
    table = lab.say("asl-pipe", "status")
    assert table.count("SUCCEEDED") == 3


def test_results_come_home_where_slurm_keeps_accounts(
    stub_project: Path, accounting: TwoNodes
) -> None:
    lab = Lab(stub_project, accounting)
    lab.stub(steps=7)
    lab.ask(account="lab")
    submit_and_come_home(lab)


@pytest.mark.parametrize("partition", ["debug", "grace"])
def test_a_preempted_job_goes_on_under_its_id(prepared: Lab, partition: str) -> None:
    lab = prepared
    lab.stub(steps=60, step_s=0.2)
    lab.ask("pretrain", partition=partition, nodes=2, cpus=2)
    lab.submit("--stage", "pretrain")
    job_id = lab.wait_for_step("pretrain@asl", 5)
    urgent = ("sbatch", "--parsable", "-p", "high", "-N2", "-c2", "--output=/dev/null")
    lab.cluster.call(*urgent, "--wrap", "srun sleep 1")
    lab.wait(lambda: lab.state("pretrain@asl").restarts == 1, "pretrain@asl")
    report = lab.wait_for("pretrain@asl", Verdict.SUCCEEDED)
    assert report.job_id == job_id
    assert [attempt.number for attempt in report.attempts] == [1]
    assert lab.encoder() == sum_after(60)


def test_a_time_limit_is_no_end(prepared: Lab) -> None:
    lab = prepared
    lab.stub(**LONGER_THAN_A_WARNING_TAKES)
    lab.ask("pretrain", time=1, warning=WARNING)
    lab.submit("--stage", "pretrain")
    job_id = lab.wait_for_step("pretrain@asl", 5)
    report = lab.wait_for("pretrain@asl", Verdict.SUCCEEDED, 240)
    assert report.job_id == job_id
    assert lab.state("pretrain@asl").restarts >= 1
    assert lab.encoder() == sum_after(150)


def test_where_requeueing_is_forbidden_another_job_goes_on_and_what_waits_follows_it(
    lab: Lab,
) -> None:
    lab.stub(steps=7)
    long = {"STUB": json.dumps(LONGER_THAN_A_WARNING_TAKES)}
    lab.ask("pretrain", time=1, warning=WARNING, requeue="resubmit", env=long)
    lab.submit("--all")
    first = lab.wait_for_step("pretrain@asl", 5)
    lab.wait_for("linprobe@asl", Verdict.SUCCEEDED, 240)
    report = lab.reports()["pretrain@asl"]
    assert report.job_id != first
    assert len(report.attempts) >= 2
    lab.adopt(*DAG)
    assert (lab.root / "runs/encoder/asl/encoder.safetensors").read_text() == sum_after(150)


def test_a_run_that_is_interrupted_too_often_fails(prepared: Lab) -> None:
    lab = prepared
    lab.stub(steps=4000, step_s=0.1)
    lab.ask("pretrain", max_restarts=0)
    lab.submit("--stage", "pretrain")
    job_id = lab.wait_for_step("pretrain@asl", 3)
    lab.cluster.call("scancel", "--signal=USR2", job_id)
    report = lab.wait_for("pretrain@asl", Verdict.FAILED)
    assert "max_restarts is 0" in report.finding.detail


def test_a_cancelled_job_goes_on_when_it_is_submitted_again(prepared: Lab) -> None:
    lab = prepared
    lab.stub(steps=60, step_s=0.2)
    lab.submit("--stage", "pretrain")
    lab.wait_for_step("pretrain@asl", 5)
    assert "cancelling job" in lab.say("asl-pipe", "cancel", "pretrain@asl")
    lab.wait_for("pretrain@asl", Verdict.LOST)
    assert "pretrain@asl" in lab.submit("--stage", "pretrain")
    report = lab.wait_for("pretrain@asl", Verdict.SUCCEEDED)
    assert len(report.attempts) == 2
    assert lab.encoder() == sum_after(60)


def test_a_run_survives_the_loss_of_its_node(prepared: Lab) -> None:
    lab = prepared
    lab.stub(steps=60, step_s=0.5)
    lab.ask("pretrain", options={"nodelist": "n1"})
    lab.submit("--stage", "pretrain")
    job_id = lab.wait_for_step("pretrain@asl", 5)
    lab.cluster.kill("slurmd-n1")
    try:
        # nobody tells the process there: it works on until it finds that it has a successor
        lab.wait(lambda: any(job.restarts == 1 for job in lab.queue()), "pretrain@asl")
        lab.cluster.call("scontrol", "update", f"JobId={job_id}", "ReqNodeList=")
        lab.wait_for("pretrain@asl", Verdict.SUCCEEDED, 150)
    finally:
        lab.cluster.start_node("n1")
    assert lab.state("pretrain@asl").nodes == "n2"
    assert lab.encoder() == sum_after(60)


def test_a_rank_that_dies_ends_the_job_which_then_goes_on(prepared: Lab) -> None:
    lab = prepared
    lab.stub(steps=80, step_s=0.2)
    lab.ask("pretrain", nodes=2)
    lab.submit("--stage", "pretrain")
    job_id = lab.wait_for_step("pretrain@asl", 12)
    killed = time.monotonic()
    for process in psutil.process_iter():
        try:
            environment = process.environ()
        except psutil.Error:
            continue
        ours = (environment.get("ASL_JOB_ID"), environment.get("RANK")) == (job_id, "1")
        if ours and "pipeline.worker.main" in process.cmdline():
            process.kill()
    lab.wait(lambda: not lab.live(), "pretrain@asl", 60)
    assert time.monotonic() - killed < 60  # it would take longer than this to end by itself
    report = lab.reports()["pretrain@asl"]
    assert report.verdict in (Verdict.LOST, Verdict.FAILED), report
    assert lab.state("pretrain@asl").status in (RunStatus.INTERRUPTED, RunStatus.FAILED)
    lab.submit("--stage", "pretrain")
    lab.wait_for("pretrain@asl", Verdict.SUCCEEDED)
    assert lab.encoder() == sum_after(80)


def test_a_rank_that_raises_ends_the_job_with_its_traceback_in_the_record(prepared: Lab) -> None:
    lab = prepared
    lab.stub(steps=4000, step_s=0.1, fail=1)
    lab.ask("pretrain", nodes=2)
    lab.submit("--stage", "pretrain")
    lab.wait_for("pretrain@asl", Verdict.FAILED)
    error = lab.state("pretrain@asl").error or ""
    assert "Traceback" in error
    assert error.rstrip().endswith("ZeroDivisionError: the stub of rank 1 fails")
    assert "rank 1 fails" in lab.say("asl-pipe", "status")


def test_what_waits_for_a_failed_job_is_blocked_and_replaced(prepared: Lab) -> None:
    lab = prepared
    lab.stub(steps=7, fail=0)
    lab.submit("--all")
    lab.wait_for("linprobe@asl", Verdict.BLOCKED)
    lab.stub(steps=7)
    lab.submit("--all")
    lab.wait_for("linprobe@asl", Verdict.SUCCEEDED)
    lab.adopt(*DAG[1:])


def test_params_and_code_that_change_do_not_reach_a_job(prepared: Lab) -> None:
    lab = prepared
    lab.stub(steps=60, step_s=0.2)
    lab.submit("--stage", "pretrain")
    lab.wait_for_step("pretrain@asl", 3)
    lock = (lab.root / "dvc.lock").read_bytes()
    lab.edit("params.yaml", "epochs: 2", "epochs: 3")
    plan = lab.say("asl-pipe", "plan")
    assert "runs with other settings: experiments.asl.epochs 2 -> 3" in plan
    kept = (lab.root / "asl_core/errors.py").read_text()
    (lab.root / "asl_core/errors.py").write_text("this is no Python\n")
    lab.wait(lambda: not lab.live(), "pretrain@asl")
    (lab.root / "asl_core/errors.py").write_text(kept)
    assert lab.state("pretrain@asl").status is RunStatus.SUCCEEDED
    assert (lab.root / "dvc.lock").read_bytes() == lock
    assert "submit" in lab.say("asl-pipe", "submit", "--stage", "pretrain", "--dry-run")
    lab.edit("params.yaml", "epochs: 3", "epochs: 2")
    assert lab.encoder() == sum_after(60)


def test_code_that_is_broken_while_a_job_waits_does_not_reach_it(prepared: Lab) -> None:
    lab = prepared
    lab.stub(steps=7)
    lab.ask("pretrain", options={"hold": True})
    lab.submit("--stage", "pretrain")
    broken = [
        lab.root / path for path in ("pipeline/worker/main.py", "pipeline/stages/pretrain.py")
    ]
    kept = [path.read_text() for path in broken]
    for path in broken:
        path.write_text("this is no Python\n")
    [job] = lab.live()
    lab.cluster.call("scontrol", "release", job.job_id)
    lab.wait(lambda: not lab.live(), "pretrain@asl")
    for path, text in zip(broken, kept, strict=True):
        path.write_text(text)
    lab.wait_for("pretrain@asl", Verdict.SUCCEEDED)
    assert lab.encoder() == sum_after(7)


def test_a_full_disk_is_a_failure_and_what_was_done_is_kept(prepared: Lab) -> None:
    lab = prepared
    lab.stub(steps=7, full="/dev/full")
    lab.submit("--stage", "pretrain")
    report = lab.wait_for("pretrain@asl", Verdict.FAILED)
    assert "No space left on device" in report.finding.detail
    lab.stub(steps=7)
    lab.submit("--stage", "pretrain")
    lab.wait_for("pretrain@asl", Verdict.SUCCEEDED)
    assert lab.encoder() == sum_after(7)


def test_an_error_of_sbatch_makes_no_second_job(prepared: Lab) -> None:
    lab = prepared
    lab.stub(steps=7)
    timed_out = "Socket timed out on send/recv operation"
    fake = lab.put_in_the_way("sbatch", f'REAL "$@" > /dev/null; echo {timed_out} >&2; exit 1')
    said = lab.submit("--stage", "pretrain")
    assert timed_out in said
    assert "submitted" in said
    fake.unlink()
    lab.wait_for("pretrain@asl", Verdict.SUCCEEDED)
    assert "done" in lab.submit("--stage", "pretrain")
    assert len(lab.queue()) == 1
    assert lab.encoder() == sum_after(7)


def test_a_queue_that_does_not_answer_is_said_and_nothing_follows_from_it(prepared: Lab) -> None:
    lab = prepared
    lab.stub(steps=4000, step_s=0.1)
    lab.submit("--stage", "pretrain")
    lab.wait_for_step("pretrain@asl", 3)
    fake = lab.put_in_the_way("squeue", "echo slurm_load_jobs error >&2; exit 1")
    assert "UNKNOWN" in lab.say("asl-pipe", "status")
    assert "nothing was submitted" in lab.submit("--stage", "pretrain", code=1)
    assert "UNKNOWN" in lab.say("dvc", "repro", "pretrain@asl", code=255)
    fake.unlink()
    assert lab.reports()["pretrain@asl"].verdict is Verdict.ACTIVE
    assert len(lab.live()) == 1
    assert len(lab.queue()) == 1


def test_dvc_waits_for_a_job_or_leaves_it_alone(prepared: Lab) -> None:
    lab = prepared
    other = "  mae: {method: mae, dataset: icons, model: vit-demo, epochs: 2, warmup_epochs: 1}\n"
    lab.edit("params.yaml", "linprobe:\n", f"{other}linprobe:\n")
    lab.stub(steps=200, step_s=0.3)
    lab.submit("--stage", "pretrain", "asl")
    job_id = lab.wait_for_step("pretrain@asl", 3)
    lock = (lab.root / "dvc.lock").read_text()
    said = lab.say("dvc", "repro", "pretrain@asl", code=255)
    assert f"pretrain@asl: job {job_id} is ACTIVE (RUNNING)" in said
    assert "exited with 75" in said
    assert (lab.root / "dvc.lock").read_text() == lock
    lab.say("dvc", "repro", "-k", "pretrain@asl", "pretrain@mae", code=255)
    made = (lab.root / "dvc.lock").read_text()
    assert "pretrain@mae" in made
    assert "pretrain@asl" not in made
    waiting = lab.start("dvc", "repro", "pretrain@asl", ASL_WAIT="1")
    read_until(waiting, f"job {job_id} is ACTIVE")
    os.killpg(waiting.pid, signal.SIGKILL)
    waiting.communicate()
    said = lab.say("dvc", "repro", "pretrain@asl", ASL_WAIT="1")
    assert lab.state("pretrain@asl").status is RunStatus.SUCCEEDED
    path = lab.root / "runs/encoder/asl/encoder.safetensors"
    assert path.read_text() == sum_after(200)
    assert "up to date" in lab.say("dvc", "status", "pretrain@asl")
    assert len(lab.queue()) == 1


@pytest.fixture
def held(lab: Lab) -> Iterator[Lab]:
    """The lab, where no job begins."""
    lab.stub(steps=7)
    lab.ask(options={"hold": True})
    yield lab
    lab.cluster.clear()


@pytest.mark.timeout(900)
def test_a_client_killed_at_any_moment_leaves_nothing_that_a_second_one_cannot_mend(
    held: Lab,
) -> None:
    lab, moments = held, random.Random(0)
    started = time.monotonic()
    lab.submit("--all")
    longest = time.monotonic() - started
    interrupted = train = 0
    while interrupted < KILLS:
        lab.cluster.clear()
        lab.first_id = 1 + max(int(job.job_id.partition("_")[0]) for job in lab.queue())
        lab.edit("params.yaml", f"train: {8 + train}", f"train: {9 + train}")  # all of it is new
        train += 1
        client = lab.start("asl-pipe", "submit", "--all")
        time.sleep(moments.uniform(0.1, 1.0) * longest)
        if client.poll() is None:
            interrupted += 1
            os.killpg(client.pid, signal.SIGKILL)
        else:  # the machine has become faster since: kill the next one earlier
            longest *= 0.8
        client.communicate()
        lab.submit("--all")
        live = Counter(job.comment.split(":")[1] for job in lab.live())
        assert sorted(live.values()) == [1, 1, 1], (train, lab.queue())
        reports = lab.reports().values()
        assert {report.verdict for report in reports} == {Verdict.ACTIVE}


@pytest.mark.timeout(900)
def test_many_clients_at_once_submit_one_job(held: Lab) -> None:
    lab = held
    clients = [lab.start("asl-pipe", "submit", "--stage", "prepare") for _ in range(CLIENTS)]
    said = [client.communicate(timeout=800)[0] for client in clients]
    # whoever has waited a minute for the others says so and asks to be called again
    assert {client.returncode for client in clients} <= {0, 75}, said
    outcomes = Counter(
        next(line for line in text.splitlines() if line.startswith("prepare@icons")).split()[1]
        for text in said
    )
    assert outcomes["submitted"] == 1, outcomes
    assert len(lab.queue()) == 1
    assert [job.phase for job in lab.live()] == [JobPhase.WAITING]
    [report] = lab.reports().values()
    assert len(read_attempts(report.paths)) == 1
