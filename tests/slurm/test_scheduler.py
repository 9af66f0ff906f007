"""The scheduler's adapter against a real Slurm of two nodes."""

import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from small_jobs import Jobs
from two_nodes import TwoNodes

from pipeline.schedulers.port import JobPhase, SchedulerError, SubmitError
from pipeline.schedulers.slurm.scheduler import SlurmScheduler

pytestmark = pytest.mark.slurm

SAY_ENVIRONMENT = "import json, os; print(json.dumps(dict(os.environ, CWD=os.getcwd())))"
SLEEP = "import time; print('up'); time.sleep(120)"
NOTE_SIGNALS = """
import os, signal, time
def note(number, frame): print('got', signal.Signals(number).name)
for number in (signal.SIGTERM, signal.SIGUSR2): signal.signal(number, note)
signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGUSR2,))
print('up', os.environ.get('SLURM_RESTART_COUNT', '0'), os.environ['MASTER_PORT'])
end = time.time() + 120
while time.time() < end: time.sleep(0.1)
"""
MEET = """
import os, socket
rank, address = int(os.environ['RANK']), (os.environ['MASTER_ADDR'], int(os.environ['MASTER_PORT']))
if rank == 0:
    with socket.create_server(('', address[1])) as server:
        server.settimeout(30)
        print('met', server.accept()[0].recv(9).decode(), 'of', os.environ['WORLD_SIZE'])
else:
    for attempt in range(100):
        try:
            socket.create_connection(address, 5).sendall(b'rank %d' % rank)
            break
        except OSError:
            __import__('time').sleep(0.1)
"""


def environment_of(jobs: Jobs, setup: tuple[str, ...] = (), **resources: object) -> dict[str, str]:
    job = jobs.make(SAY_ENVIRONMENT, setup=setup, **resources)
    [job_id] = jobs.scheduler.submit([job])
    assert jobs.wait_for_end(job_id).said == "COMPLETED"
    return json.loads(jobs.log(job, job_id).splitlines()[-1])


def test_a_job_is_its_command_and_its_log_is_in_its_folder(jobs: Jobs) -> None:
    job = jobs.make(
        "import os, sys; print(os.environ['WORD'], os.getppid()); sys.stderr.write('both\\n')",
        setup=("export WORD='two words'",),
    )
    [job_id] = jobs.scheduler.submit([job])
    ended = jobs.wait_for_end(job_id)
    assert ended.said == "COMPLETED"
    assert ended.comment == job.comment
    assert ended.restarts == 0
    assert jobs.log(job, job_id).startswith("two words")
    assert "both" in jobs.log(job, job_id)
    assert [path.name for path in (job.folder / "log").iterdir()] == [f"{job_id}_0.log"]


def test_a_job_asks_for_what_its_resources_say(jobs: Jobs, cluster: TwoNodes) -> None:
    job = jobs.make(
        SLEEP, nodes=2, tasks_per_node=2, partition="grace", memory="100M", time="1-02:03:04",
        warning=77, requeue="resubmit", options={"nice": 5},
    )  # fmt: skip
    [job_id] = jobs.scheduler.submit([job])
    shown = cluster.call("scontrol", "show", "job", "-o", job_id)
    for expected in (
        "NumNodes=2", "NumTasks=4", "CPUs/Task=1", "MinMemoryNode=100M", "Partition=grace",
        "TimeLimit=1-02:04:00", "Requeue=0", "Nice=5", "JobName=job1",
    ):  # fmt: skip
        assert expected in shown, (expected, shown)


def test_a_partition_without_a_limit_gives_none(jobs: Jobs, cluster: TwoNodes) -> None:
    job = jobs.make(SLEEP)
    [job_id] = jobs.scheduler.submit([job])
    jobs.wait_for_log(job, job_id, "up")
    shown = cluster.call("scontrol", "show", "job", "-o", job_id)
    # submitit alone would ask for five minutes; Slurm's two schedulers name no limit differently
    assert "TimeLimit=365-00:00:00" in shown or "TimeLimit=UNLIMITED" in shown, shown
    assert "Requeue=1" in shown


def test_a_task_knows_its_rank_and_its_processors(jobs: Jobs) -> None:
    found = environment_of(jobs, tasks_per_node=1, cpus=2)
    expected = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    assert expected.items() <= found.items()
    assert (found["ASL_JOB_CPUS"], found["ASL_JOB_ID"]) == ("2", found["SLURM_JOB_ID"])
    assert found["ASL_NODE"] == found["ASL_JOB_NODES"] == found["SLURM_JOB_NODELIST"]


def test_what_setup_exports_reaches_tasks_of_a_job_that_inherits_nothing(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OF_THE_CLIENT", "1")
    found = environment_of(jobs, ("export PYTHONPATH=/frozen",), options={"export": "NONE"})
    assert found["PYTHONPATH"] == "/frozen"
    assert "OF_THE_CLIENT" not in found


def test_a_task_does_not_start_in_the_project(jobs: Jobs) -> None:
    found = environment_of(jobs)
    assert Path(found["CWD"]).parent == jobs.scheduler.folder


def test_ranks_on_two_nodes_meet_although_the_nodes_names_mean_nothing_here(jobs: Jobs) -> None:
    job = jobs.make(MEET, nodes=2, tasks_per_node=1)
    [job_id] = jobs.scheduler.submit([job])
    assert jobs.wait_for_end(job_id).said == "COMPLETED", jobs.log(job, job_id)
    assert "met rank 1 of 2" in jobs.log(job, job_id)
    assert {path.name for path in (job.folder / "log").iterdir()} == {
        f"{job_id}_0.log", f"{job_id}_1.log",
    }  # fmt: skip


def test_a_dead_rank_ends_the_whole_job(jobs: Jobs) -> None:
    program = SLEEP.replace("time.sleep", "__import__('os')._exit(3) if int("
                            "__import__('os').environ['RANK']) else time.sleep")  # fmt: skip
    job = jobs.make(program, nodes=2)
    [job_id] = jobs.scheduler.submit([job])
    assert jobs.wait_for_end(job_id, 30).said == "FAILED"


def test_a_command_that_is_not_on_the_node_is_named(jobs: Jobs) -> None:
    job = jobs.make("")
    job = type(job)(**{**vars(job), "command": ("no-such-program",)})
    [job_id] = jobs.scheduler.submit([job])
    assert jobs.wait_for_end(job_id).said == "FAILED"
    assert "no-such-program on " in jobs.log(job, job_id)


def test_jobs_that_ask_the_same_become_an_array_with_comments_and_logs_of_their_own(
    jobs: Jobs,
) -> None:
    made = [jobs.make("import sys; print('I am', sys.argv[1])", str(n)) for n in range(3)]
    other = jobs.make("print('I am other')", memory="50M")
    ids = jobs.scheduler.submit([made[0], other, made[1], made[2]])
    array = ids[0].partition("_")[0]
    assert [ids[0], ids[2], ids[3]] == [f"{array}_{index}" for index in range(3)]
    assert ids[1].isdigit()
    for n, (job, job_id) in enumerate(zip(made, [ids[0], *ids[2:]], strict=True)):
        assert jobs.wait_for_end(job_id).said == "COMPLETED"
        assert jobs.find(job_id).comment == job.comment
        assert jobs.log(job, job_id) == f"I am {n}\n"


def test_an_array_has_no_more_elements_than_the_cluster_allows(jobs: Jobs) -> None:
    held = {"hold": True}
    made = [jobs.make("", options=held) for _ in range(2500)]
    ids = jobs.scheduler.submit(made)
    arrays = Counter(job_id.partition("_")[0] for job_id in ids)
    assert list(arrays.values()) == [1001, 1001, 498]
    comments = {job.job_id: job.comment for job in jobs.scheduler.queue() if not job.has_ended}
    assert [comments[job_id] for job_id in ids] == [job.comment for job in made]
    jobs.scheduler.cancel(ids)
    assert not any(jobs.is_live(job_id) for job_id in (ids[0], ids[-1]))


def test_a_job_waits_for_the_success_of_another(jobs: Jobs) -> None:
    first = jobs.make("import time; time.sleep(2)")
    [first_id] = jobs.scheduler.submit([first])
    [second_id] = jobs.scheduler.submit([jobs.make("print('after')", after=(first_id,))])
    waiting = jobs.wait(second_id, lambda job: job.reason != "")
    assert (waiting.phase, waiting.reason) == (JobPhase.WAITING, "Dependency")
    assert jobs.wait_for_end(second_id).said == "COMPLETED"


def test_a_job_whose_upstream_fails_never_starts_and_says_so(jobs: Jobs) -> None:
    [first_id] = jobs.scheduler.submit([jobs.make("raise SystemExit(1)")])
    [second_id] = jobs.scheduler.submit([jobs.make("", after=(first_id,))])
    assert jobs.wait_for_end(first_id).said == "FAILED"
    jobs.wait(second_id, lambda job: job.can_never_start)


def test_all_tasks_are_warned_before_the_time_limit(jobs: Jobs) -> None:
    # 15 to 45 s after the beginning: a process that is not up yet is ended by a warning
    job = jobs.make(NOTE_SIGNALS, nodes=2, time=1, warning=15)
    [job_id] = jobs.scheduler.submit([job])
    for rank in (0, 1):
        jobs.wait_for_log(job, job_id, "up 0", rank)
        jobs.wait_for_log(job, job_id, "got SIGUSR2", rank)
    assert jobs.find(job_id).phase is JobPhase.RUNNING


def test_a_preempted_job_is_told_and_comes_back_under_its_id(jobs: Jobs) -> None:
    job = jobs.make(NOTE_SIGNALS, nodes=2, cpus=2)
    [job_id] = jobs.scheduler.submit([job])
    jobs.wait_for_log(job, job_id, "up 0", rank=1)
    urgent = jobs.make("import time; time.sleep(1)", nodes=2, cpus=2, partition="high")
    [urgent_id] = jobs.scheduler.submit([urgent])
    jobs.wait_for_log(job, job_id, "got SIGTERM", rank=1)
    jobs.wait_for_end(urgent_id)
    jobs.wait_for_log(job, job_id, "up 1")
    running = jobs.find(job_id)
    assert (running.phase, running.restarts) == (JobPhase.RUNNING, 1)
    assert running.nodes == "n[1-2]"
    said = jobs.log(job, job_id)
    assert "up 0" in said  # the log goes on where it was
    assert (
        len({line.split()[2] for line in re.findall("^up .*", said, re.MULTILINE)}) == 2
    )  # another port


def test_a_running_job_can_be_requeued(jobs: Jobs) -> None:
    job = jobs.make(NOTE_SIGNALS)
    [job_id] = jobs.scheduler.submit([job])
    jobs.wait_for_log(job, job_id, "up 0")
    jobs.scheduler.requeue(job_id)
    assert not jobs.find(job_id).has_ended
    jobs.wait_for_log(job, job_id, "up 1")
    with pytest.raises(SchedulerError, match="9999"):
        jobs.scheduler.requeue("9999")


def test_a_job_that_is_requeued_already_is_not_requeued_again(jobs: Jobs) -> None:
    job = jobs.make(NOTE_SIGNALS)
    [job_id] = jobs.scheduler.submit([job])
    jobs.wait_for_log(job, job_id, "up 0")
    jobs.scheduler.requeue(job_id)
    with pytest.raises(SchedulerError):
        jobs.scheduler.requeue(job_id)
    assert jobs.find(job_id).restarts == 1


def test_a_job_that_is_being_cancelled_does_not_rise_again(jobs: Jobs) -> None:
    job = jobs.make(NOTE_SIGNALS)
    [job_id] = jobs.scheduler.submit([job])
    jobs.wait_for_log(job, job_id, "up 0")
    jobs.scheduler.cancel([job_id])
    jobs.wait_for_log(job, job_id, "got SIGTERM")
    assert jobs.find(job_id).said == "COMPLETING"
    with pytest.raises(SchedulerError, match="being cancelled"):
        jobs.scheduler.requeue(job_id)
    assert jobs.wait_for_end(job_id).said == "CANCELLED"


def test_requeueing_may_be_forbidden(jobs: Jobs) -> None:
    job = jobs.make(NOTE_SIGNALS, requeue="resubmit")
    [job_id] = jobs.scheduler.submit([job])
    jobs.wait_for_log(job, job_id, "up 0")
    with pytest.raises(SchedulerError, match="disabled"):
        jobs.scheduler.requeue(job_id)


def test_cancelling_what_has_ended_or_never_was_is_no_error(jobs: Jobs) -> None:
    [job_id] = jobs.scheduler.submit([jobs.make("")])
    jobs.wait_for_end(job_id)
    jobs.scheduler.cancel([job_id, "99999", "99998_3"])
    jobs.scheduler.cancel([])


def test_elements_of_an_array_are_cancelled_one_by_one(jobs: Jobs) -> None:
    ids = jobs.scheduler.submit([jobs.make(SLEEP), jobs.make(SLEEP)])
    jobs.scheduler.cancel(ids[:1])
    assert [jobs.is_live(job_id) for job_id in ids] == [False, True]


def test_a_job_submitted_from_inside_an_array_is_no_element_of_it(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3", "SLURM_RESTART_COUNT": "2",
        "SLURM_CPUS_PER_TASK": "9", "SBATCH_PARTITION": "high", "SUBMITIT_EXECUTOR": "local",
        "ASL_JOB_ID": "7_3", "ASL_JOB_RESTARTS": "2", "ASL_JOB_CPUS": "9",
        "MASTER_ADDR": "nowhere", "RANK": "5",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    found = environment_of(jobs)
    assert "SLURM_ARRAY_TASK_ID" not in found
    assert "SLURM_RESTART_COUNT" not in found
    assert "ASL_JOB_RESTARTS" not in found
    assert found["ASL_JOB_ID"] == found["SLURM_JOB_ID"]
    assert (found["SLURM_JOB_PARTITION"], found["RANK"]) == ("debug", "0")


def test_squeue_variables_hide_no_jobs(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    [job_id] = jobs.scheduler.submit([jobs.make(SLEEP)])
    monkeypatch.setenv("SQUEUE_PARTITION", "high")
    assert jobs.find(job_id)


@pytest.mark.parametrize(
    "wrong",
    [
        {"partition": "nowhere"}, {"memory": "900G"}, {"gpus": 1}, {"constraint": "big"},
        {"options": {"reservation": "never"}}, {"options": {"nonsense": True}},
        {"options": {"gres": "gpu:1"}}, {"options": {"nodelist": "n7"}},
    ],
    ids=str,
)  # fmt: skip
def test_a_refusal_is_certain_and_says_why(jobs: Jobs, wrong: dict[str, object]) -> None:
    good, bad = jobs.make(SLEEP), jobs.make(SLEEP, **wrong)
    with pytest.raises(SubmitError, match="sbatch: ") as caught:
        jobs.scheduler.submit([good, bad, jobs.make(SLEEP, memory="1M")])
    assert not caught.value.ambiguous
    taken, *others = caught.value.job_ids
    assert others == [None, None]
    assert [job.comment for job in jobs.scheduler.queue() if not job.has_ended] == [good.comment]
    assert taken is not None


def put_in_the_way(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, script: str) -> Path:
    """Let a script be found instead of a command; REAL in it is the command's path."""
    real = subprocess.run(["which", name], capture_output=True, text=True, check=True)
    path = folder / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("#!/bin/sh\n" + script.replace("REAL", real.stdout.strip()))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{path.parent}{os.pathsep}{os.environ['PATH']}")
    return path


@pytest.mark.parametrize(
    "script",
    [
        "REAL \"$@\" > /dev/null; echo 'Socket timed out on send/recv operation' >&2; exit 1",
        'REAL "$@" > /dev/null; exit 1',
        'REAL "$@" > /dev/null; echo Thank you',
        'REAL "$@" > /dev/null; kill -9 $$',
    ],
)
def test_an_error_after_the_job_was_taken_is_ambiguous_and_its_comment_is_in_the_queue(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    put_in_the_way(monkeypatch, jobs.folder, "sbatch", script)
    made = [jobs.make("print('done')"), jobs.make("print('done')")]
    with pytest.raises(SubmitError) as caught:
        jobs.scheduler.submit(made)
    assert caught.value.ambiguous
    found = [job for job in jobs.scheduler.queue() if job.comment == made[1].comment]
    assert len(found) == 1
    # and it is whole: it runs as if nothing had happened
    assert jobs.wait_for_end(found[0].job_id).said == "COMPLETED"


def test_a_job_whose_client_was_killed_during_sbatch_lacks_nothing(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, let_go = jobs.folder / "asked", jobs.folder / "let-go"
    script = f'touch {asked}; until [ -e {let_go} ]; do sleep 0.1; done; REAL "$@"'
    put_in_the_way(monkeypatch, jobs.folder, "sbatch", script)
    program = f"""
import sys
from pathlib import Path
from pipeline.schedulers.slurm.scheduler import SlurmScheduler
from pipeline.schedulers.slurm.resources import SlurmResources
from pipeline.schedulers.port import BatchJob
folder = Path({str(jobs.folder)!r})
job = BatchJob("orphan", folder / "orphan", "asl:orphan:1", (sys.executable, "-c", "print(4)"),
               SlurmResources())
SlurmScheduler(folder / "slurm").submit([job])
"""
    client = subprocess.Popen([sys.executable, "-c", program], cwd=Path(__file__).parents[2])
    try:
        while not asked.exists():
            assert client.poll() is None
            time.sleep(0.02)
        client.send_signal(signal.SIGKILL)
        assert client.wait() == -signal.SIGKILL
    finally:
        let_go.touch()
    give_up, orphans = time.monotonic() + 60, []
    while not orphans:
        assert time.monotonic() < give_up
        time.sleep(0.1)
        orphans = [job for job in jobs.scheduler.queue() if job.comment == "asl:orphan:1"]
    [found] = orphans
    assert jobs.wait_for_end(found.job_id).said == "COMPLETED"


def test_a_queue_that_cannot_be_asked_is_not_empty(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = put_in_the_way(monkeypatch, jobs.folder, "squeue", "echo broken >&2; exit 1")
    with pytest.raises(SchedulerError, match="squeue: broken"):
        jobs.scheduler.queue()
    fake.write_text("#!/bin/sh\necho garbage\n")
    with pytest.raises(SchedulerError, match="garbage"):
        jobs.scheduler.queue()
    fake.write_text("#!/bin/sh\nexec sleep 30\n")
    with pytest.raises(SchedulerError, match="not answered for 1 s"):
        SlurmScheduler(jobs.scheduler.folder, timeout_s=1.0).queue()


def test_nothing_follows_from_a_controller_that_is_down(jobs: Jobs, cluster: TwoNodes) -> None:
    job = jobs.make(SLEEP)
    [job_id] = jobs.scheduler.submit([job])
    jobs.wait_for_log(job, job_id, "up")
    cluster.kill("slurmctld", signal.SIGTERM)  # so that it saves what it knows
    try:
        with pytest.raises(SchedulerError, match="Unable to contact slurm controller"):
            jobs.scheduler.queue()
        with pytest.raises(SubmitError) as caught:
            jobs.scheduler.submit([jobs.make(SLEEP)])
        assert caught.value.ambiguous
        assert jobs.scheduler.explain(job_id) is None
    finally:
        cluster.start_controller()
    assert jobs.wait(job_id, lambda job: job.phase is JobPhase.RUNNING)


@pytest.mark.slow
def test_a_job_of_a_lost_node_is_requeued(jobs: Jobs, cluster: TwoNodes) -> None:
    job = jobs.make(NOTE_SIGNALS, options={"nodelist": "n1"})
    [job_id] = jobs.scheduler.submit([job])
    jobs.wait_for_log(job, job_id, "up 0")
    cluster.kill("slurmd-n1")
    try:
        waiting = jobs.wait(job_id, lambda job: job.restarts == 1, 90)
        assert not waiting.has_ended
    finally:
        cluster.start_node("n1")


def test_an_end_is_explained_without_accounting(jobs: Jobs) -> None:
    [job_id] = jobs.scheduler.submit([jobs.make("raise SystemExit(3)")])
    jobs.wait_for_end(job_id)
    assert jobs.scheduler.explain(job_id) == "FAILED, exit code 3, NonZeroExitCode"
    assert jobs.scheduler.explain("99999") is None


def test_an_end_is_explained_by_accounting(accounting: TwoNodes, tmp_path: Path) -> None:
    jobs = Jobs(tmp_path, SlurmScheduler(tmp_path / "slurm"))
    ids = jobs.scheduler.submit([jobs.make("raise SystemExit(3)"), jobs.make(SLEEP)])
    jobs.wait_for_end(ids[0])
    jobs.scheduler.cancel(ids[1:])
    jobs.wait_for_end(ids[1])
    for job_id, expected in zip(ids, ("FAILED, exit code 3", "CANCELLED by"), strict=True):
        give_up = time.monotonic() + 30
        while not (said := jobs.scheduler.explain(job_id) or "").startswith(expected):
            assert time.monotonic() < give_up, said  # records come a moment later
            time.sleep(0.5)


def test_the_longest_array_is_the_clusters(jobs: Jobs) -> None:
    assert jobs.scheduler.longest_array() == 1001


def test_sbatch_says_beforehand_what_can_never_start(jobs: Jobs) -> None:
    before = jobs.scheduler.queue()
    assert "to start at" in jobs.scheduler.try_out(jobs.make("", nodes=2).resources)
    with pytest.raises(SchedulerError, match="node configuration is not available"):
        jobs.scheduler.try_out(jobs.make("", nodes=5).resources)
    assert jobs.scheduler.queue() == before


def test_submissions_are_removed_when_their_jobs_have_ended(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.schedulers.slurm.scheduler.KEPT_S", -1.0)
    ids = jobs.scheduler.submit([jobs.make(""), jobs.make(SLEEP, memory="10M")])
    jobs.wait_for_end(ids[0])
    assert jobs.scheduler.remove_old_submissions() == 1
    jobs.scheduler.cancel(ids[1:])
    jobs.wait_for_end(ids[1])
    assert jobs.scheduler.remove_old_submissions() == 1
    assert list(jobs.scheduler.folder.iterdir()) == []
