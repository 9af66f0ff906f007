"""The local pool with jobs that are a few lines of shell: slots, orders, deaths."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.schedulers.local import folder as pool_folder
from pipeline.schedulers.local.jobs import PoolJob
from pipeline.schedulers.local.resources import LocalResources
from pipeline.schedulers.local.scheduler import LocalPool
from pipeline.schedulers.local.tasks import holders
from pipeline.schedulers.port import (
    BatchJob,
    JobPhase,
    QueuedJob,
    Scheduler,
    SchedulerError,
    SubmitError,
)

GPUS = ("GPU-one", "GPU-two")
PATIENCE_S = 60.0

LISTENER = """
import signal, sys
heard = signal.sigwait({signal.SIGUSR2, signal.SIGTERM})
print("heard", signal.Signals(heard).name, flush=True)
sys.exit(int(sys.argv[1]))
"""


class Pool:
    """A pool with two GPUs and four CPU slots, and a folder in which its jobs work."""

    def __init__(self, root: Path, slots: Path) -> None:
        self.root = root
        self.folder = root / ".asl" / "pool"
        self.environment = {**os.environ, "ASL_POOL_SLOTS": str(slots)}
        self.scheduler = LocalPool(self.folder, self.environment)

    def job(self, script: str, after: tuple[str, ...] = (), **settings: Any) -> BatchJob:
        return self.batch_job(("bash", "-c", script), after, **settings)

    def batch_job(
        self, command: tuple[str, ...], after: tuple[str, ...] = (), **settings: Any
    ) -> BatchJob:
        folder = self.root / f"job-{time.time_ns()}"
        folder.mkdir(parents=True)
        defaults = {"visible_gpus": GPUS, "cpu_slots": 4, "grace": 1, "crash_limit": 3}
        asked = LocalResources(**{**defaults, **settings})
        setup = (f"cd {self.root}", *asked.setup_lines())
        return BatchJob("a job", folder, f"asl:{folder.name}", command, asked, setup, after)

    def submit(self, script: str, after: tuple[str, ...] = (), **settings: Any) -> str:
        [job_id] = self.scheduler.submit([self.job(script, after, **settings)])
        return job_id

    def line(self, job_id: str) -> QueuedJob:
        return next(job for job in self.scheduler.queue() if job.job_id == job_id)

    def read(self, job_id: str) -> PoolJob:
        job = self.scheduler.pool.read(job_id)
        assert job is not None
        return job

    def wait(self, until: Callable[[], object]) -> None:
        """Wait without asking the pool for anything: nothing starts because of this."""
        give_up = time.monotonic() + PATIENCE_S
        while not until():
            assert time.monotonic() < give_up, self.scheduler.pool.jobs()
            time.sleep(0.02)

    def wait_for_end(self, *job_ids: str) -> list[str]:
        """Return how jobs ended."""
        self.wait(lambda: all(self.read(job_id).has_ended for job_id in job_ids))
        return [str(self.scheduler.explain(job_id)) for job_id in job_ids]

    def wait_for(self, name: str) -> None:
        """Wait for a file that a job makes."""
        self.wait((self.root / name).exists)

    def text(self, name: str) -> str:
        return (self.root / name).read_text()

    def log(self, job_id: str, rank: int = 0) -> str:
        return (Path(self.read(job_id).folder) / "log" / f"{job_id}_{rank}.log").read_text()

    def keeper(self, job_id: str) -> int:
        """Return the process id of a job's keeper."""
        pid = self.find_keeper(job_id)
        assert pid is not None, f"job {job_id} has no keeper"
        return pid

    def find_keeper(self, job_id: str) -> int | None:
        marker = [str(self.folder).encode(), job_id.encode()]
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"pipeline.schedulers.local.keeper" in words and words[4:6] == marker:
                return int(folder.name)
        return None

    def tasks(self, job_id: str) -> list[int]:
        """Return the process ids of a job's tasks, without what they have started."""
        self.wait(lambda: self.read(job_id).processes)
        return [pid for pid, _ in self.read(job_id).processes]

    def kill_all(self, job_id: str) -> None:
        """Kill a job's keeper and then all else that belongs to it; return when that is gone."""
        lock = self.scheduler.pool.tasks_lock(job_id)
        for pid in [self.keeper(job_id), *self.tasks(job_id), *holders(lock, job_id)]:
            kill(pid)
        self.wait(lambda: not holders(lock, job_id))

    def close(self) -> None:
        self.scheduler.cancel([job.job_id for job in self.scheduler.pool.jobs()])
        self.wait(lambda: self.scheduler.queue() and self.has_ended())

    def has_ended(self) -> bool:
        return all(job.has_ended for job in self.scheduler.pool.jobs())


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


@pytest.fixture
def new_pool(tmp_path: Path) -> Iterator[Callable[[str], Pool]]:
    """Makes the pools of projects on one machine."""
    made: list[Pool] = []

    def make(name: str) -> Pool:
        made.append(Pool(tmp_path / name, tmp_path / "slots"))
        return made[-1]

    yield make
    for pool in made:
        if pool.folder.exists() and pool.scheduler.pool.jobs():
            pool.close()


@pytest.fixture
def pool(new_pool: Callable[[str], Pool]) -> Pool:
    return new_pool("project")


def test_two_jobs_at_a_time_have_two_gpus_and_never_one_the_same(pool: Pool) -> None:
    script = (
        'mkdir "on-$CUDA_VISIBLE_DEVICES" || exit 9; touch "began-$ASL_JOB_ID"; '
        "until [ $(ls -d began-* | wc -l) -ge 2 ]; do sleep 0.02; done; "
        'echo "$CUDA_VISIBLE_DEVICES" >> used; rmdir "on-$CUDA_VISIBLE_DEVICES"'
    )
    ids = pool.scheduler.submit([pool.job(script, gpus=1) for _ in range(4)])
    assert ids == ["1_0", "1_1", "1_2", "1_3"]
    assert set(pool.wait_for_end(*ids)) == {"COMPLETED"}
    used = pool.text("used").split()
    assert (len(used), set(used)) == (4, set(GPUS))


def test_projects_of_one_machine_share_its_slots(new_pool: Callable[[str], Pool]) -> None:
    one, other = new_pool("one"), new_pool("other")
    first = one.submit("touch began; until [ -e go ]; do sleep 0.02; done", gpus=2)
    one.wait_for("began")
    second = other.submit("touch began", gpus=1)
    assert other.line(second).reason == "waits for 1 GPU and 1 CPU slot"
    assert other.line(second).phase is JobPhase.WAITING
    (one.root / "go").touch()
    one.wait_for_end(first)  # its keeper sets the other project's job going
    assert other.wait_for_end(second) == ["COMPLETED"]


def test_a_dag_runs_without_anybody_asking(pool: Pool) -> None:
    first = pool.submit("echo first >> said")
    second = pool.submit("echo second >> said", (first,))
    third = pool.submit("echo third >> said", (second,))
    failing = pool.submit("exit 3", (first,))
    never = pool.submit("echo never >> said", (failing,))
    ends = pool.wait_for_end(first, second, third, failing)
    assert ends == ["COMPLETED", "COMPLETED", "COMPLETED", "FAILED, exit code 3"]
    assert pool.text("said").split() == ["first", "second", "third"]
    line = pool.line(never)
    assert (line.can_never_start, line.phase) == (True, JobPhase.WAITING)
    assert line.reason == f"needs job {failing}, which is FAILED"


def test_a_job_has_the_environment_of_who_submitted_it(pool: Pool) -> None:
    pool.environment |= {"MINE": "ä 1", "RANK": "7", "ASL_JOB_ID": "old", "SECRET": "x"}
    blocker = pool.submit("until [ -e go ]; do sleep 0.02; done", cpus=4)
    script = 'echo "$MINE,$RANK,$ASL_JOB_ID,$OMP_NUM_THREADS,$OWN,$CUDA_VISIBLE_DEVICES." > said'
    job_id = pool.submit(script, cpus=2, env={"OWN": "a b"})
    [kept] = pool.folder.glob(f"environment/{job_id}.json")
    assert kept.stat().st_mode & 0o777 == 0o600
    assert "SECRET" not in pool.scheduler.pool.job_file(job_id).read_text()
    pool.environment.clear()
    (pool.root / "go").touch()
    assert pool.wait_for_end(blocker, job_id) == ["COMPLETED", "COMPLETED"]
    threads = os.environ.get("OMP_NUM_THREADS", "2")
    assert pool.text("said") == f"ä 1,,{job_id},{threads},a b,.\n"
    assert not kept.exists()


def test_all_tasks_of_a_job_end_when_one_fails(pool: Pool) -> None:
    script = (
        'echo "$RANK $LOCAL_RANK $WORLD_SIZE $MASTER_ADDR:$MASTER_PORT $CUDA_VISIBLE_DEVICES"; '
        "until [ -e go ]; do sleep 0.02; done; [ $RANK = 0 ] || exit 4; sleep 600"
    )
    job_id = pool.submit(script, gpus=2, tasks_per_node=2)
    pool.tasks(job_id)
    pool.wait(lambda: pool.log(job_id, 0) and pool.log(job_id, 1))
    (pool.root / "go").touch()
    assert pool.wait_for_end(job_id) == ["FAILED, exit code 4"]
    first, second = pool.log(job_id, 0).split(), pool.log(job_id, 1).split()
    assert (first[:3], second[:3]) == (["0", "0", "2"], ["1", "1", "2"])
    assert first[3:] == second[3:]
    assert first[4] == ",".join(GPUS)


def test_a_death_that_nobody_ordered_is_followed_by_another_start(pool: Pool) -> None:
    script = (
        'echo "$ASL_JOB_RESTARTS" >> said; '
        "case $ASL_JOB_RESTARTS in 0) kill -9 $$;; 1) exit 75;; *) exit 0;; esac"
    )
    job_id = pool.submit(script)
    again = pool.submit("kill -9 $$", crash_limit=2)
    assert pool.wait_for_end(job_id, again) == [
        "COMPLETED",
        "FAILED, died by SIGKILL; 2 times in a row within a minute of its start",
    ]
    assert pool.text("said").split() == ["0", "1", "2"]


def test_a_job_that_lost_its_keeper_runs_on_and_its_end_is_not_guessed(pool: Pool) -> None:
    script = 'echo "$ASL_JOB_RESTARTS" >> said; until [ -e go ]; do sleep 0.02; done'
    job_id = pool.submit(script, gpus=1)
    pool.wait_for("said")
    [task] = pool.tasks(job_id)
    killed = pool.keeper(job_id)
    kill(killed)
    pool.wait(lambda: pool.line(job_id) and pool.find_keeper(job_id) not in (None, killed))
    assert pool.line(job_id).phase is JobPhase.RUNNING
    assert pool.text("said").split() == ["0"]
    os.kill(task, 0)
    after = pool.submit("cat said > seen", (job_id,))
    (pool.root / "go").touch()
    assert pool.wait_for_end(job_id, after) == ["COMPLETED", "COMPLETED"]
    assert pool.text("seen").split() == ["0", "1"]


def test_when_everything_was_killed_the_next_to_ask_sets_it_going(pool: Pool) -> None:
    job_id = pool.submit('echo "$ASL_JOB_RESTARTS" >> said; [ -e go ] || sleep 600', gpus=2)
    after = pool.submit("true", (job_id,), gpus=2)
    pool.wait_for("said")
    pool.kill_all(job_id)
    (pool.root / "go").touch()
    assert pool.read(job_id).state == "RUNNING"  # as far as its file knows
    pool.line(job_id)
    assert pool.wait_for_end(job_id, after) == ["COMPLETED", "COMPLETED"]
    assert pool.text("said").split() == ["0", "1"]


def test_after_a_restart_of_the_machine_a_job_goes_on_and_that_is_no_crash(pool: Pool) -> None:
    job_id = pool.submit("[ -e go ] || { touch began; sleep 600; }", crash_limit=1)
    pool.wait_for("began")
    pool.kill_all(job_id)
    file = pool.scheduler.pool.job_file(job_id)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"boot": "before"}))
    (pool.root / "go").touch()
    pool.line(job_id)
    assert pool.wait_for_end(job_id) == ["COMPLETED"]
    assert (pool.read(job_id).restarts, pool.read(job_id).crashes) == (1, 0)


def test_a_keeper_that_is_told_to_stop_ends_its_job_gently_and_starts_no_other(pool: Pool) -> None:
    script = "trap 'exit 75' TERM; touch began; until [ -e go ]; do sleep 0.02; done"
    job_id = pool.submit(script, cpus=4)
    waiting = pool.submit("true", cpus=4)
    pool.wait_for("began")
    kill(pool.keeper(job_id), signal.SIGTERM)
    pool.wait(lambda: pool.read(job_id).state == "PENDING")
    assert pool.read(job_id).reason == "its keeper was told to stop"
    assert pool.read(waiting).state == "PENDING"
    (pool.root / "go").touch()
    pool.line(job_id)
    assert pool.wait_for_end(job_id, waiting) == ["COMPLETED", "COMPLETED"]


def test_cancel_ends_jobs_that_wait_run_or_do_not_listen(pool: Pool) -> None:
    gentle = pool.submit("trap 'exit 75' TERM; touch a; while :; do sleep 0.02; done")
    deaf = pool.submit("trap '' TERM; touch b; while :; do sleep 0.02; done")
    orphan = pool.submit("touch c; while :; do sleep 0.02; done")
    waits = pool.submit("touch never", (gentle,))
    for name in "abc":
        pool.wait_for(name)
    kill(pool.keeper(orphan))
    pool.scheduler.cancel([gentle, deaf, orphan, waits, "99"])
    assert pool.read(waits).state == "CANCELLED"
    assert pool.line(waits).never_began
    ends = pool.wait_for_end(gentle, deaf, orphan)
    assert [end.split(",")[0] for end in ends] == ["CANCELLED"] * 3
    assert ends[1] == "CANCELLED, SIGKILL"
    with pytest.raises(SchedulerError, match="is not requeued: it is CANCELLED"):
        pool.scheduler.requeue(gentle)


def test_a_job_is_warned_before_its_limit_and_ended_at_it(pool: Pool) -> None:
    listener = (sys.executable, "-c", LISTENER)
    warned = pool.batch_job((*listener, "75"), time="0:20", warning=18, max_restarts=1)
    stubborn = pool.batch_job(("sleep", "600"), time="0:02", warning=1)
    [first] = pool.scheduler.submit([warned])
    [second] = pool.scheduler.submit([stubborn])
    ends = pool.wait_for_end(first, second)
    assert ends[0] == "FAILED, interrupted after 1 restarts; max_restarts is 1"
    assert pool.log(first).split() == 2 * ["heard", "SIGUSR2"]  # held back until it listens
    assert ends[1] == "TIMEOUT, SIGTERM, its limit is 2 s"


def test_a_job_that_asks_for_it_is_requeued_under_its_id(pool: Pool) -> None:
    script = (
        'echo "$ASL_JOB_RESTARTS" >> said; [ $ASL_JOB_RESTARTS = 1 ] || '
        "{ trap 'exit 75' TERM; while :; do sleep 0.02; done; }"
    )
    job_id = pool.submit(script)
    fixed = pool.submit("touch began; sleep 600", requeue="resubmit")
    pool.wait_for("said")
    pool.wait_for("began")
    with pytest.raises(SchedulerError, match="it asked not to be"):
        pool.scheduler.requeue(fixed)
    pool.scheduler.requeue(job_id)
    assert pool.wait_for_end(job_id) == ["COMPLETED"]
    assert pool.text("said").split() == ["0", "1"]


def test_what_a_task_leaves_behind_does_not_keep_its_gpu(pool: Pool) -> None:
    first = pool.submit("sleep 600 & disown", gpus=2)
    second = pool.submit("true", gpus=2)
    assert pool.wait_for_end(first, second) == ["COMPLETED", "COMPLETED"]
    assert holders(pool.scheduler.pool.tasks_lock(first), first) == []


def test_a_signal_reaches_the_tasks(pool: Pool) -> None:
    [job_id] = pool.scheduler.submit([pool.batch_job((sys.executable, "-c", LISTENER, "0"))])
    pool.tasks(job_id)
    pool.scheduler.send_signal(job_id, "USR2")
    assert pool.wait_for_end(job_id) == ["COMPLETED"]
    assert pool.log(job_id) == "heard SIGUSR2\n"
    with pytest.raises(SchedulerError, match=f"job {job_id} has no process on this machine"):
        pool.scheduler.send_signal(job_id, "USR2")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"gpus": 3}, "a job asks for 3 GPUs, the pool has 2: change pool: in cluster.yaml"),
        ({"cpus": 5}, "a job asks for 5 CPU slots, the pool has 4: change pool: in cluster.yaml"),
        ({"memory": "900T"}, "a job asks for memory 900T, the machine has "),
    ],
)
def test_what_the_machine_has_not_is_refused_at_submission(
    pool: Pool, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(SubmitError) as caught:
        pool.scheduler.submit([pool.job("true"), pool.job("true", **settings)])
    assert str(caught.value).startswith(said)
    assert not caught.value.ambiguous
    assert pool.scheduler.queue() == []


def test_slots_that_cannot_be_had_are_refused_at_submission(pool: Pool) -> None:
    pool.environment["ASL_POOL_SLOTS"] = "/proc/nowhere"
    with pytest.raises(SubmitError, match=r"slots: .* '/proc/nowhere'; set ASL_POOL_SLOTS to a"):
        pool.submit("true")
    assert pool.scheduler.queue() == []


def test_a_full_disk_takes_whole_jobs_or_none(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Path] = []

    def write(path: Path, content: object) -> None:
        if len(written) == 1:
            raise OSError(28, "No space left on device")
        written.append(path)
        path.write_text(json.dumps(content))

    monkeypatch.setattr(pool_folder, "write_json", write)
    with pytest.raises(SubmitError, match="No space left") as caught:
        pool.scheduler.submit([pool.job("true"), pool.job("true")])
    assert (caught.value.job_ids, caught.value.ambiguous) == (("1_0", None), False)
    monkeypatch.undo()
    assert [job.job_id for job in pool.scheduler.queue()] == ["1_0"]
    assert pool.wait_for_end("1_0") == ["COMPLETED"]


def test_a_torn_file_is_said_in_one_line_and_nothing_follows_from_the_rest(pool: Pool) -> None:
    job_id = pool.submit("true")
    pool.wait_for_end(job_id)
    torn = pool.folder / "jobs" / "7.json"
    torn.write_text("{")
    with pytest.raises(SchedulerError, match=r"7\.json: cannot be read .*; remove it") as caught:
        pool.scheduler.queue()
    assert "\n" not in str(caught.value)
    torn.unlink()


def test_old_jobs_go_and_no_number_is_given_twice(pool: Pool) -> None:
    first, second = pool.submit("true"), pool.submit("exit 1")
    third = pool.submit("true", (second,))
    pool.wait_for_end(first, second)
    assert pool.scheduler.remove_old_submissions() == 0  # too young
    for job_id in (first, second):
        file = pool.scheduler.pool.job_file(job_id)
        file.write_text(json.dumps(json.loads(file.read_text()) | {"ended": 1.0}))
    assert pool.scheduler.remove_old_submissions([Path(pool.read(first).folder)]) == 0
    pool.wait(lambda: pool.scheduler.remove_old_submissions() == 1)  # its keeper may still end
    assert [job.job_id for job in pool.scheduler.queue()] == [second, third]
    pool.scheduler.cancel([third])
    for path in (pool.folder / "jobs").iterdir():
        path.unlink()
    assert pool.submit("true") == "4"


def test_a_job_of_another_machine_is_shown_left_alone_and_may_be_cancelled(pool: Pool) -> None:
    blocker = pool.submit("until [ -e go ]; do sleep 0.02; done", cpus=4)
    waits, runs = pool.submit("touch never", cpus=4), pool.submit("touch never", cpus=4)
    for job_id, more in ((waits, {}), (runs, {"state": "RUNNING", "started": 1.0})):
        file = pool.scheduler.pool.job_file(job_id)
        file.write_text(json.dumps(json.loads(file.read_text()) | {"host": "other", **more}))
    (pool.root / "go").touch()
    pool.wait_for_end(blocker)
    assert pool.line(waits).reason.startswith("in the pool of other")
    line = pool.line(runs)
    assert (line.phase, line.nodes) == (JobPhase.UNSETTLED, "other")
    assert line.reason.startswith("nothing heard of it for")
    pool.scheduler.cancel([waits, runs])
    assert pool.wait_for_end(waits, runs) == ["CANCELLED", "CANCELLED"]
    assert not (pool.root / "never").exists()


def test_clients_at_once_start_each_job_once(pool: Pool) -> None:
    pids = []
    for _ in range(4):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                pool.submit('echo "$ASL_JOB_ID" >> said')
                for _ in range(5):
                    pool.scheduler.queue()
                code = 0
            finally:
                os._exit(code)
        pids.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0, 0, 0, 0]
    assert pool.wait_for_end("1", "2", "3", "4") == ["COMPLETED"] * 4
    assert sorted(pool.text("said").split()) == ["1", "2", "3", "4"]


def test_what_a_job_submits_is_started_by_its_keeper_on_any_gpu_of_the_pool(pool: Pool) -> None:
    first = pool.submit("until [ -e go ]; do sleep 0.02; done", gpus=1)
    [task] = pool.tasks(first)
    words = Path(f"/proc/{task}/environ").read_bytes().decode().split("\0")
    inside = LocalPool(pool.folder, dict(word.split("=", 1) for word in words if "=" in word))
    [second] = inside.submit([pool.job('echo "$CUDA_VISIBLE_DEVICES" > used', gpus=2)])
    assert [job.state for job in pool.scheduler.pool.jobs()] == ["RUNNING", "PENDING"]
    inside.queue()
    (pool.root / "go").touch()
    assert pool.wait_for_end(first, second) == ["COMPLETED", "COMPLETED"]
    assert pool.text("used").strip().split(",") == list(GPUS)


def test_it_is_a_scheduler(pool: Pool) -> None:
    scheduler: Scheduler = pool.scheduler
    assert scheduler.queue() == []
    assert not pool.folder.exists()  # who only looks writes nothing
