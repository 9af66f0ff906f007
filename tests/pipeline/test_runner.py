"""One process of a job, step by step, in this process: no DVC, no cluster."""

import dataclasses
import getpass
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from fake_scheduler import FakeScheduler

from asl_core.engine.signals import catch_stop_signals
from asl_core.errors import InputError, InterruptedRun
from pipeline.errors import SupersededError
from pipeline.execution.gpus import Gpus
from pipeline.jobs.claim import claim
from pipeline.jobs.fence import Fence
from pipeline.jobs.folder import JobFolder
from pipeline.jobs.job import Attempt, Job, Terms, comment_of, read_attempts, write_attempt
from pipeline.jobs.job import write_job as write_job_file
from pipeline.jobs.journal import read_records
from pipeline.jobs.state import JobState, RunStatus, read_state, write_state
from pipeline.jobs.verdict import Patience
from pipeline.results.code import code_folder
from pipeline.results.port import Filing
from pipeline.schedulers.port import JobPhase, QueuedJob, SchedulerError
from pipeline.stages.request import StageRequest
from pipeline.worker import helper as job_helper
from pipeline.worker.main import run_job
from pipeline.worker.process import WorkerServices
from pipeline.writing import write_json

PARAMS = """
suite: tiny
title: Tiny
scale: reduced
tables: []
datasets: {icons: {source: icons, train: 8, test: 4}}
experiments: {asl: {method: asl, dataset: icons, model: vit-demo, epochs: 2, warmup_epochs: 1}}
linprobe: {}
finetune: {}
detect: {}
segment: {}
analyze: {}
"""
KEY = "f" * 64
ME = getpass.getuser()
DATA = {"md5": "d" * 32 + ".dir", "size": 1, "nfiles": 1}
RESULT = {"md5": "a" * 32 + ".dir", "size": 1, "nfiles": 1}


class MemoryCache:
    """Keeps results by fingerprint; fingerprints are the inputs' hashes."""

    def __init__(self) -> None:
        self.results: dict[str, Any] = {}
        self.filings: list[Filing] = []
        self.while_filing: Callable[[], None] = lambda: None
        self.visible: Callable[[], bool] = lambda: True

    def key(self, document: dict[str, Any]) -> str:
        return document["deps"][0]["md5"].split(".")[0] * 2

    def find(self, root: Path, fingerprint: str) -> Any:
        return self.results.get(fingerprint)

    def holds(self, root: Path, hashes: Any) -> bool:
        return self.visible()

    def link(self, root: Path, hashes: Any, target: Path) -> None:
        for path in hashes:
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            if path.endswith(".txt"):
                (target / path).write_text("composed by the project\n")
            else:
                (target / path).mkdir()

    def file(self, filing: Filing) -> Any:
        self.while_filing()
        self.filings.append(filing)
        assert all(place.exists() for place in filing.outputs.values())
        return dict.fromkeys(filing.outputs, RESULT)


class OneJobScheduler:
    """Knows one job, which does not let itself be requeued."""

    def __init__(self, phase: JobPhase) -> None:
        self.phase, self.submitted = phase, []
        self.others: list[QueuedJob] = []

    def queue(self) -> list[QueuedJob]:
        own = QueuedJob("27", self.phase, "", comment=comment_of(KEY, "t1"), nodes="n1", restarts=0)
        return [own, *self.others]

    def requeue(self, job_id: str) -> None:
        raise SchedulerError("Requested operation is presently disabled")

    def submit(self, jobs: list[Any]) -> list[str]:
        self.submitted += jobs
        return ["28"]


class RequeueingScheduler(OneJobScheduler):
    """Knows one job, which it requeues."""

    def __init__(self, then: Callable[[], None] = lambda: None) -> None:
        super().__init__(JobPhase.RUNNING)
        self.requeued: list[str] = []
        self.then = then

    def requeue(self, job_id: str) -> None:
        self.requeued.append(job_id)
        self.then()


class Bench:
    """A job's record and what is needed to run it."""

    def __init__(self, folder: Path) -> None:
        self.paths = JobFolder.of(folder / ".asl", KEY)
        self.cache, self.scheduler = MemoryCache(), FakeScheduler(folder / "cluster")
        self.paths.folder.mkdir(parents=True)
        self.paths.params.write_text(PARAMS)
        code = code_folder(folder / ".asl", "code") / "code"
        code.mkdir(parents=True)
        for name in ("prepare-icons", "pretrain-asl"):
            (code / f"{name}.txt").write_text("")  # the stages of these tests import nothing
        self.pauses: list[float] = []
        self.heartbeat_s = 0.02
        self.clock: Callable[[], float] = time.time
        self.while_pausing: Callable[[], None] = lambda: None
        self.write_job(DATA)
        self.write_attempt(1)

    def write_job(
        self,
        hashed: dict[str, Any],
        stage: str = "pretrain",
        key: str = "asl",
        path: str = "data/icons",
    ) -> None:
        deps = [{"path": path, "hash": "md5", **hashed}]
        document = {
            "cmd": "asl-pipe run pretrain asl", "deps": deps, "params": {},
            "outs": [{"path": "runs/pretrain/asl"}, {"path": "runs/pretrain/asl.json"}],
        }  # fmt: skip
        write_job_file(self.paths, Job(
            stage=stage, key=key, name=f"{stage}@{key}", suite=".", fingerprint=KEY,
            recipe="r" * 64, document=document, submitted=time.time(), host="h", user=ME,
        ))  # fmt: skip

    def write_attempt(self, number: int, **changes: Any) -> Attempt:
        terms = Terms(
            snapshot="code", resources={"log_every_steps": 1},
            asked={"max_restarts": 3, "requeue": "allowed"},
            upstream={"data/icons": "p-" + "e" * 64}, data_root="/data",
        )  # fmt: skip
        attempt = Attempt(
            **{"number": number, "token": f"t{number}", "job_id": "27", "submitted": time.time(),
               "host": "h", "user": ME, "terms": terms, **changes}
        )  # fmt: skip
        write_attempt(self.paths, attempt)
        return attempt

    def upstream(self, status: RunStatus | None, submitted: float | None = None) -> None:
        """Let the run that makes the input be in a state; None: it has not begun."""
        paths = JobFolder.of(self.paths.scratch, "p-" + "e" * 64)
        paths.folder.mkdir(parents=True, exist_ok=True)
        write_job_file(paths, Job(
            stage="prepare", key="icons", name="prepare@icons", suite=".",
            fingerprint="p-" + "e" * 64, recipe="e" * 64, document={"deps": []},
            submitted=0.0, host="h", user=ME,
        ))  # fmt: skip
        write_attempt(paths, Attempt(
            number=1, token="u", job_id="5", host="h", user=ME,
            submitted=time.time() if submitted is None else submitted,
            terms=Terms(snapshot="", resources={}, asked={}, upstream={}, data_root=""),
        ))  # fmt: skip
        if status is not None:
            manifest = {"data/icons": DATA} if status is RunStatus.SUCCEEDED else {}
            write_state(paths, JobState(
                status=status, attempt=1, token="u", heartbeat=self.clock(), started=0.0,
                fingerprint="b" * 64, manifest=manifest, error="Traceback\nOSError: no",
            ))  # fmt: skip

    def run(
        self,
        stage: Callable[[StageRequest], dict[str, float]],
        token: str = "t1",
        **environment: str,
    ) -> int:
        services = WorkerServices(
            cache=self.cache, scheduler=self.scheduler, load=lambda _: stage,
            gpus=lambda: Gpus(("GPU-1",), ("H100",), "555.1"),
            heartbeat_s=self.heartbeat_s, pause=self.pause,
            patience=Patience(submitted_s=0.5), clock=self.clock,
        )  # fmt: skip
        return run_job(self.paths, token, services, {"ASL_JOB_ID": "27", **environment})

    def be_ready(self) -> None:
        """Let the first process of several have laid out the inputs."""
        (self.paths.inputs / "data/icons").mkdir(parents=True, exist_ok=True)
        self.leave(self.paths.ready, fingerprint="d" * 64, done=False)

    def leave(self, path: Path, **content: Any) -> None:
        """Let a process of the first start have left a word."""
        write_json(path, {"token": "t1", "restart": 0, **content})

    def lead(self, status: RunStatus) -> None:
        """Let the first process of several say something."""
        write_state(self.paths, JobState(
            status=status, attempt=1, token="t1", heartbeat=self.clock(), started=0.0,
        ))  # fmt: skip

    def tags(self) -> dict[str, str]:
        """Return what the run's journal says of it."""
        said = [r.body["values"] for r in read_records(self.work.journal) if r.kind == "tags"]
        return {name: value for values in said for name, value in values.items()}

    def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.while_pausing()

    def fast_clock(self) -> float:
        """Return the time, in which pauses have taken as long as they say."""
        return time.time() + sum(self.pauses)

    def after_pauses(self, number: int, act: Callable[[], None]) -> None:
        """Let something happen in a pause."""
        self.while_pausing = lambda: act() if len(self.pauses) == number else None

    @property
    def state(self) -> JobState:
        state = read_state(self.paths)
        assert state is not None
        return state

    @property
    def work(self) -> JobFolder:
        return JobFolder.of(self.paths.scratch, "d" * 64)


HELPER = {"RANK": "1", "WORLD_SIZE": "2"}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "project")


def succeed(request: StageRequest) -> dict[str, float]:
    (request.outputs["encoder"] / "encoder.safetensors").write_text("weights")
    return {"pretrain/loss": 0.5}


def test_a_job_gives_its_stage_what_was_frozen_and_files_what_it_made(bench: Bench) -> None:
    seen: list[StageRequest] = []

    def look(request: StageRequest) -> dict[str, float]:
        seen.append(request)
        return succeed(request)

    assert bench.run(look) == 0
    (request,) = seen
    assert request.recipe.epochs == 2
    assert request.inputs == {"dataset": bench.paths.inputs / "data/icons"}
    assert request.work == bench.work.folder
    (filing,) = bench.cache.filings
    assert set(filing.outputs) == {
        "runs/encoder/asl", "runs/held_out/asl", "runs/pretrain/asl", "runs/pretrain/asl.json",
    }  # fmt: skip
    assert json.loads(bench.work.metrics.read_text()) == {
        "fingerprint": "d" * 64, "pretrain/loss": 0.5, "scale": "reduced", "code": "",
    }  # fmt: skip
    state = bench.state
    assert (state.status, state.exit_code, state.fingerprint) == (RunStatus.SUCCEEDED, 0, "d" * 64)
    assert (state.gpus, state.driver, state.job_id) == (("GPU-1",), "555.1", "27")
    assert set(state.manifest) == set(filing.outputs)
    assert (bench.work.out / "encoder/encoder.safetensors").is_file()


def test_a_dataset_is_read_from_where_its_submitter_had_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASL_DATA", "/of/the/compute/node")
    bench.write_job(DATA, "prepare", "icons", path="sources/icons.txt")

    def look(request: StageRequest) -> dict[str, float]:
        assert request.inputs == {"data_root": Path("/data")}
        return {}

    assert bench.run(look) == 0
    assert set(bench.cache.filings[0].outputs) == {"data/icons", "runs/prepare/icons"}


def test_a_heartbeat_says_how_far_the_run_is(bench: Bench) -> None:
    def train(request: StageRequest) -> dict[str, float]:
        request.journal.resume(0, 20)
        request.journal.metrics(7, {"pretrain/loss": 0.25, "pretrain/images_per_s": 100.0})
        give_up = time.monotonic() + 10
        while bench.state.step != 7 and time.monotonic() < give_up:
            time.sleep(0.01)
        now = bench.state
        assert now.status is RunStatus.RUNNING
        assert (now.step, now.total_steps, now.loss, now.images_per_s) == (7, 20, 0.25, 100.0)
        first = now.heartbeat
        while bench.state.heartbeat == first and time.monotonic() < give_up:
            time.sleep(0.01)
        return succeed(request)

    assert bench.run(train) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_while_the_result_is_filed_waits_for_its_end(bench: Bench, number: int) -> None:
    bench.cache.while_filing = lambda: os.kill(os.getpid(), number)
    assert bench.run(succeed) == 0
    assert bench.state.status is RunStatus.SUCCEEDED


def test_a_signal_before_training_interrupts_and_is_remembered(bench: Bench) -> None:
    def wait(request: StageRequest) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
        return {}

    assert bench.run(wait) == 75
    assert (bench.state.status, bench.state.stopped_by) == (RunStatus.INTERRUPTED, ("SIGTERM",))
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_signal_that_came_before_there_were_handlers_is_not_lost(bench: Bench) -> None:
    bench.scheduler = RequeueingScheduler()  # type: ignore[assignment]
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])  # as task.py leaves it
    try:
        # not to the process: other tests have left threads behind that do not hold it back
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR2)
        assert bench.run(succeed) == 75
        assert signal.SIGUSR2 not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
        assert bench.state.stopped_by == ("SIGUSR2",)
        assert bench.scheduler.requeued == ["27"]  # type: ignore[attr-defined]
    finally:
        handler = signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # drops what is pending
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        signal.signal(signal.SIGUSR2, handler)


def warn(request: StageRequest) -> dict[str, float]:
    os.kill(os.getpid(), signal.SIGUSR1)
    time.sleep(5)
    return {}


def be_terminated() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


class PeerLost(RuntimeError):
    """An error while which is written down the scheduler ends the job."""

    def __str__(self) -> str:
        be_terminated()
        return "Connection closed by peer"


def test_a_signal_while_a_failure_is_written_down_does_not_hide_it(bench: Bench) -> None:
    def fail(request: StageRequest) -> dict[str, float]:
        raise PeerLost

    assert bench.run(fail) == 1
    assert bench.state.status is RunStatus.FAILED
    assert (bench.state.error or "").rstrip().endswith("Connection closed by peer")
    assert read_records(bench.work.journal)[-2].body["status"] == "FAILED"


def test_a_job_that_the_scheduler_ends_because_it_was_requeued_ends_without_an_error(
    bench: Bench,
) -> None:
    bench.scheduler = RequeueingScheduler(be_terminated)  # type: ignore[assignment]
    assert bench.run(warn) == 75
    assert bench.scheduler.requeued == ["27"]  # type: ignore[attr-defined]


def test_a_run_that_cannot_note_its_interruption_goes_on_all_the_same(bench: Bench) -> None:
    def fill_the_disk(request: StageRequest) -> dict[str, float]:
        while not bench.paths.state.is_dir():  # nothing can be written there then
            bench.paths.state.unlink(missing_ok=True)
            with suppress(FileExistsError):  # the job's heart beats in between
                bench.paths.state.mkdir()
        return warn(request)

    bench.scheduler = RequeueingScheduler()  # type: ignore[assignment]
    assert bench.run(fill_the_disk) == 75
    assert bench.scheduler.requeued == ["27"]  # type: ignore[attr-defined]


def test_a_job_that_may_not_be_requeued_is_submitted_anew(bench: Bench) -> None:
    bench.scheduler = OneJobScheduler(JobPhase.RUNNING)  # type: ignore[assignment]
    assert bench.run(warn, ASL_JOB_RESTARTS="1") == 0
    (job,) = bench.scheduler.submitted  # type: ignore[attr-defined]
    newest = read_attempts(bench.paths)[-1]
    assert (newest.number, newest.job_id, newest.restarts) == (2, "28", 2)
    assert job.command[-1] == newest.token
    assert job.comment == comment_of(KEY, newest.token)


@pytest.mark.parametrize("phase", [JobPhase.UNSETTLED, JobPhase.WAITING])
def test_a_job_that_the_scheduler_is_requeueing_itself_is_left_to_it(
    bench: Bench, phase: JobPhase
) -> None:
    bench.scheduler = OneJobScheduler(phase)  # type: ignore[assignment]
    assert bench.run(warn) == 75
    assert bench.scheduler.submitted == []  # type: ignore[attr-defined]
    assert len(read_attempts(bench.paths)) == 1


class DeafScheduler(RequeueingScheduler):
    """Does not answer so many times, whatever it is asked."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def _listen(self) -> None:
        self.times -= 1
        if self.times >= 0:
            raise SchedulerError("Unable to contact the controller")

    def queue(self) -> list[QueuedJob]:
        self._listen()
        return super().queue()

    def requeue(self, job_id: str) -> None:
        self._listen()
        super().requeue(job_id)


def test_a_scheduler_that_does_not_answer_for_a_while_is_asked_again(bench: Bench) -> None:
    bench.scheduler = DeafScheduler(5)  # type: ignore[assignment]
    assert bench.run(warn) == 75
    assert bench.scheduler.requeued == ["27"]  # type: ignore[attr-defined]
    assert bench.scheduler.submitted == []  # type: ignore[attr-defined]


def test_a_scheduler_that_never_answers_is_given_up(bench: Bench) -> None:
    bench.clock = bench.fast_clock
    bench.scheduler = DeafScheduler(10**9)  # type: ignore[assignment]
    assert bench.run(warn) == 75
    assert len(read_attempts(bench.paths)) == 1
    assert bench.state.status is RunStatus.INTERRUPTED


@pytest.mark.parametrize("submits", [False, True])
def test_a_run_goes_on_once_nobody_else_submits_it(bench: Bench, submits: bool) -> None:
    bench.clock = bench.fast_clock
    bench.scheduler = OneJobScheduler(JobPhase.RUNNING)  # type: ignore[assignment]
    theirs = claim(bench.paths.folder.parent, "p-" + "r" * 64, bench.clock())
    assert theirs is not None

    def end_submission() -> None:
        if submits and theirs.is_held():
            bench.write_attempt(2, job_id="29")
        theirs.release()

    bench.after_pauses(1, end_submission)
    assert bench.run(warn) == 0
    newest = read_attempts(bench.paths)[-1]
    assert (newest.number, newest.job_id) == (2, "29" if submits else "28")
    assert len(bench.scheduler.submitted) == (0 if submits else 1)  # type: ignore[attr-defined]


def test_a_job_that_comes_back_again_and_again_fails(bench: Bench) -> None:
    assert bench.run(succeed, ASL_JOB_RESTARTS="4") == 1
    assert bench.state.status is RunStatus.FAILED
    assert bench.state.error == "restarted 4 times; max_restarts is 3"


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (InputError("the dataset is empty"), 2, "the dataset is empty"),
        (OSError(28, "No space left on device"), 1, "No space left on device"),
        (MemoryError(), 1, "MemoryError"),
        (SystemExit(3), 1, "SystemExit: 3"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_failure_is_written_down_as_far_as_it_is_news(
    bench: Bench, error: BaseException, code: int, said: str
) -> None:
    def fail(request: StageRequest) -> dict[str, float]:
        raise error

    assert bench.run(fail) == code
    assert bench.state.status is RunStatus.FAILED
    assert (bench.state.error or "").rstrip().endswith(said)
    assert ("Traceback" in (bench.state.error or "")) == (code == 1)
    assert bench.cache.filings == []


def test_passwords_do_not_reach_the_record(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORE_PASSWORD", "hunter2hunter2")

    def fail(request: StageRequest) -> dict[str, float]:
        raise ValueError("cannot log in with hunter2hunter2")

    bench.run(fail)
    assert "hunter2" not in bench.paths.state.read_text()


def test_a_start_that_was_given_up_writes_nothing_more(bench: Bench) -> None:
    def go_on(request: StageRequest) -> dict[str, float]:
        bench.write_attempt(2)
        give_up = time.monotonic() + 10
        try:
            while time.monotonic() < give_up:  # the heartbeat notices, and asks to stop
                time.sleep(0.01)
        finally:
            write_state(bench.paths, JobState(
                status=RunStatus.RUNNING, attempt=2, token="t2", heartbeat=1.0, started=1.0
            ))  # fmt: skip
        return succeed(request)

    assert bench.run(go_on) == 0  # jobs that wait for this one follow the newer attempt
    assert (bench.state.token, bench.state.heartbeat) == ("t2", 1.0)
    assert bench.cache.filings == []


def test_a_checkpoint_is_not_written_after_a_newer_start(bench: Bench) -> None:
    bench.heartbeat_s = 60.0  # it does not notice first

    def checkpoint(request: StageRequest) -> dict[str, float]:
        request.before_checkpoint()
        bench.write_attempt(2)
        request.before_checkpoint()
        raise AssertionError("must not get here")

    assert bench.run(checkpoint) == 0


def test_a_result_is_not_filed_after_a_newer_start(bench: Bench) -> None:
    bench.heartbeat_s = 60.0  # it does not notice first

    def end(request: StageRequest) -> dict[str, float]:
        bench.write_attempt(2)
        return succeed(request)

    assert bench.run(end) == 0
    assert bench.cache.filings == []


def test_a_failure_after_a_newer_attempt_is_no_failure_in_the_schedulers_eyes(bench: Bench) -> None:
    bench.heartbeat_s = 60.0  # it does not notice first

    def fail(request: StageRequest) -> dict[str, float]:
        bench.write_attempt(2)
        raise ZeroDivisionError

    assert bench.run(fail) == 0
    assert bench.state.status is RunStatus.RUNNING  # the record is its successor's


def test_a_start_fails_in_the_schedulers_eyes_when_the_same_job_has_started_anew(
    bench: Bench,
) -> None:
    bench.heartbeat_s = 60.0  # it does not notice first

    def end(request: StageRequest) -> dict[str, float]:
        Fence.put_up(bench.paths.fence, bench.paths, 1, 1)
        return succeed(request)

    assert bench.run(end) == 75
    assert bench.cache.filings == []


def test_an_attempt_without_a_record_does_nothing(bench: Bench) -> None:
    assert bench.run(succeed, token="another") == 2
    assert read_state(bench.paths) is None


# Several processes


def lose_peer(request: StageRequest) -> dict[str, float]:
    raise RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Closed")


def be_ended_and_lose_peer(request: StageRequest) -> dict[str, float]:
    with catch_stop_signals():
        be_terminated()
        return lose_peer(request)


@pytest.mark.parametrize(
    ("stage", "peer_heard", "status", "requeued"),
    [
        (lose_peer, ["SIGUSR2"], RunStatus.INTERRUPTED, ["27"]),
        (lose_peer, ["SIGTERM"], RunStatus.INTERRUPTED, []),
        (be_ended_and_lose_peer, ["SIGTERM"], RunStatus.INTERRUPTED, []),
        (lose_peer, None, RunStatus.FAILED, []),
        (be_ended_and_lose_peer, None, RunStatus.FAILED, []),  # it was killed, srun ends the rest
    ],
)
def test_the_end_of_another_process_is_an_interruption_if_that_obeyed_a_signal(
    bench: Bench, stage: Any, peer_heard: list[str] | None, status: RunStatus, requeued: list[str]
) -> None:
    bench.scheduler = RequeueingScheduler()  # type: ignore[assignment]
    if peer_heard is not None:
        bench.leave(bench.paths.rank_stopped(1), signals=peer_heard)
    assert bench.run(stage, RANK="0", WORLD_SIZE="2") == (1 if status is RunStatus.FAILED else 75)
    assert bench.state.status is status
    assert bench.scheduler.requeued == requeued  # type: ignore[attr-defined]
    assert read_records(bench.work.journal)[-2].body["status"] == status


def test_a_word_of_another_start_counts_for_nothing(bench: Bench) -> None:
    bench.leave(bench.paths.rank_stopped(1), restart=1, signals=["SIGUSR2"])
    assert bench.run(lose_peer, RANK="0", WORLD_SIZE="2") == 1


def test_a_warning_that_only_another_process_has_heard_yet_counts(bench: Bench) -> None:
    def stop(request: StageRequest) -> dict[str, float]:
        raise InterruptedRun("another process was asked to stop")

    bench.scheduler = RequeueingScheduler()  # type: ignore[assignment]
    bench.after_pauses(2, lambda: bench.leave(bench.paths.rank_stopped(1), signals=["SIGUSR2"]))
    assert bench.run(stop, RANK="0", WORLD_SIZE="2") == 75
    assert bench.scheduler.requeued == ["27"]  # type: ignore[attr-defined]


def test_a_helper_whose_first_process_was_interrupted_has_not_failed(bench: Bench) -> None:
    bench.be_ready()
    bench.lead(RunStatus.RUNNING)
    bench.after_pauses(1, lambda: bench.lead(RunStatus.INTERRUPTED))
    assert bench.run(lose_peer, **HELPER) == 0
    assert bench.paths.rank_stopped(1).exists()
    assert not bench.paths.rank_error(1).exists()


def test_a_helper_of_an_attempt_that_was_given_up_has_not_failed(bench: Bench) -> None:
    bench.be_ready()
    bench.write_attempt(2)
    assert bench.run(lose_peer, **HELPER) == 0


def test_a_helper_that_fails_leaves_a_word(bench: Bench) -> None:
    bench.clock = bench.fast_clock
    bench.be_ready()
    assert bench.run(lose_peer, **HELPER) == 1
    assert "gloo" in json.loads(bench.paths.rank_error(1).read_text())["error"]
    assert not bench.paths.rank_stopped(1).exists()


def test_a_helper_that_is_stopped_leaves_a_word(bench: Bench) -> None:
    bench.be_ready()
    assert bench.run(warn, **HELPER) == 0
    said = json.loads(bench.paths.rank_stopped(1).read_text())
    assert (said["token"], said["restart"], said["signals"]) == ("t1", 0, ["SIGUSR1"])


def test_a_helper_ends_with_a_first_process_that_never_begins(bench: Bench) -> None:
    bench.after_pauses(1, lambda: bench.lead(RunStatus.INTERRUPTED))
    assert bench.run(lose_peer, **HELPER) == 0


@pytest.mark.parametrize(("beats", "code"), [(True, 0), (False, 1)])
def test_a_helper_waits_for_inputs_as_long_as_the_first_process_lives(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, beats: bool, code: int
) -> None:
    monkeypatch.setattr(job_helper, "READY_S", 2.0)
    bench.clock = bench.fast_clock
    bench.lead(RunStatus.RUNNING)

    def lay_out() -> None:
        if beats:
            bench.lead(RunStatus.RUNNING)
        if sum(bench.pauses) > 5:
            bench.be_ready()

    bench.while_pausing = lay_out
    assert bench.run(lambda _: {}, **HELPER) == code


def test_a_helpers_folder_is_its_own_to_remove(bench: Bench) -> None:
    folder = bench.work.rank_folder(1)

    def compute(request: StageRequest) -> dict[str, float]:
        assert request.out.is_relative_to(folder)
        return {}

    bench.be_ready()
    assert bench.run(compute, **HELPER) == 0
    assert not folder.exists()
    folder.mkdir()  # it is slow
    assert bench.run(succeed, RANK="0", WORLD_SIZE="2") == 0
    assert folder.exists()


def test_a_run_says_where_it_ran_and_how_it_ended(bench: Bench) -> None:
    bench.be_ready()
    assert bench.run(lambda _: {}, **HELPER) == 0
    told = json.loads(bench.paths.rank_gpus(1).read_text())
    assert told["gpus"] == ["GPU-1"]
    bench.leave(bench.paths.rank_gpus(1), gpus=["GPU-1", "GPU-2"])
    assert bench.run(succeed, RANK="0", WORLD_SIZE="2") == 0
    assert bench.state.gpus == ("GPU-1", "GPU-2")
    tags = bench.tags()
    assert tags["gpu.uuids"] == "GPU-1,GPU-2"
    assert tags["exit_code"] == "0"
    assert tags["log"] == f".asl/jobs/{KEY}/log/27_0.log"


@pytest.mark.parametrize(
    ("error", "code"),
    [(InputError("no"), "2"), (ZeroDivisionError(), "1"), (InterruptedRun("stop"), "75")],
    ids=lambda value: type(value).__name__,
)
def test_a_run_that_does_not_end_well_says_so_too(
    bench: Bench, error: Exception, code: str
) -> None:
    def fail(request: StageRequest) -> dict[str, float]:
        raise error

    assert bench.run(fail) == int(code)
    assert bench.tags()["exit_code"] == code


@pytest.mark.parametrize("what", ["threading.Thread(target=hang).start()", "atexit.register(hang)"])
def test_nothing_keeps_a_process_that_is_done(what: str) -> None:
    program = f"""
import atexit, threading, time
from pipeline.worker import main as runner
def hang(): time.sleep(200)
runner.EXIT_S = 1.0
{what}
atexit.register(print, "kept", flush=True)
runner.leave(7)"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 7, done.stderr
    assert done.stdout == "kept\n"


# What it needs


def test_an_input_is_taken_from_the_run_that_made_it(bench: Bench) -> None:
    bench.write_job({})
    bench.upstream(RunStatus.SUCCEEDED)
    assert bench.run(succeed) == 0
    assert bench.state.fingerprint == "d" * 64
    (filing,) = bench.cache.filings
    assert filing.document["deps"][0]["md5"] == DATA["md5"]
    assert bench.pauses == []


def test_what_dvc_does_not_track_is_laid_out_too(bench: Bench) -> None:
    terms = dataclasses.asdict(read_attempts(bench.paths)[0].terms)
    bench.write_attempt(1, terms=Terms(**terms | {"external": {"encoders/mae": RESULT}}))

    def look(request: StageRequest) -> dict[str, float]:
        assert (bench.paths.inputs / "encoders/mae").is_dir()
        return succeed(request)

    assert bench.run(look) == 0


def test_an_input_that_was_not_made_is_a_failure_that_names_it(bench: Bench) -> None:
    bench.write_job({})
    bench.upstream(RunStatus.FAILED)
    assert bench.run(succeed) == 1
    error = bench.state.error or ""
    assert "data/icons was not made" in error
    assert "OSError: no" in error
    assert "Traceback" not in error


def test_an_input_of_which_nobody_has_heard_is_a_failure(bench: Bench) -> None:
    bench.write_job({})
    assert bench.run(succeed) == 1
    assert "it has no record" in (bench.state.error or "")


def test_an_input_that_is_not_seen_yet_is_waited_for(bench: Bench) -> None:
    bench.write_job({})
    bench.upstream(None)
    bench.after_pauses(1, lambda: bench.upstream(RunStatus.SUCCEEDED))
    assert bench.run(succeed) == 0


def test_outputs_that_show_after_minutes_are_waited_for(bench: Bench) -> None:
    bench.clock = bench.fast_clock
    bench.write_job({})
    bench.upstream(RunStatus.SUCCEEDED)
    bench.cache.visible = lambda: sum(bench.pauses) > 200
    assert bench.run(succeed) == 0


@pytest.mark.parametrize("at_first", ["no record", "no state"])
def test_a_record_that_shows_late_is_no_failure(bench: Bench, at_first: str) -> None:
    bench.write_job({})
    if at_first == "no state":
        bench.upstream(None, submitted=0.0)  # long ago, and it has left the queue
    bench.after_pauses(1, lambda: bench.upstream(RunStatus.SUCCEEDED))
    assert bench.run(succeed) == 0


def test_an_attempt_whose_file_shows_late_begins_then(bench: Bench) -> None:
    bench.after_pauses(1, lambda: bench.write_attempt(2) and None)
    assert bench.run(succeed, token="t2") == 0
    assert bench.state.attempt == 2


@pytest.mark.parametrize("folder", ["own", "another"])
@pytest.mark.parametrize("state", ["RUNNING", "silent", "ended"])
def test_a_folder_is_left_to_another_runs_job_as_long_as_that_lives(
    bench: Bench, state: str, folder: str
) -> None:
    bench.heartbeat_s = 60.0
    bench.clock = bench.fast_clock
    bench.upstream(None if state == "ended" else RunStatus.RUNNING, submitted=0.0)
    other = JobFolder.of(bench.paths.scratch, "p-" + "e" * 64)
    fence = bench.paths.fence if folder == "own" else bench.work.fence
    theirs = Fence.put_up(fence, other, 1, 0)
    bench.scheduler = OneJobScheduler(JobPhase.RUNNING)  # type: ignore[assignment]
    line = QueuedJob("5", JobPhase.RUNNING, "RUNNING", comment=comment_of("e" * 64, "u"))
    bench.scheduler.others = [line] if state == "RUNNING" else []  # type: ignore[attr-defined]
    assert bench.run(succeed) == 0
    if state == "ended":
        assert len(bench.cache.filings) == 1
        with pytest.raises(SupersededError):
            theirs.check()
    else:
        assert bench.cache.filings == []
        theirs.check()
        assert read_attempts(bench.paths)[-1].after == ("5",)
        assert bench.state.status is RunStatus.INTERRUPTED


def test_other_inputs_mean_another_folder_and_other_checkpoints(bench: Bench) -> None:
    bench.write_job({})
    bench.upstream(RunStatus.SUCCEEDED)

    def checkpoint(request: StageRequest) -> dict[str, float]:
        assert not list(request.work.glob("ckpt/*"))
        (request.work / "ckpt").mkdir(exist_ok=True)
        (request.work / "ckpt/step-4").write_text("state")
        raise ZeroDivisionError

    assert bench.run(checkpoint) == 1
    upstream = JobFolder.of(bench.paths.scratch, "p-" + "e" * 64)
    state = read_state(upstream)
    assert state is not None
    other = {"data/icons": {**DATA, "md5": "c" * 32 + ".dir"}}
    write_state(upstream, JobState(**{**vars(state), "manifest": other}))
    bench.write_attempt(2)
    assert bench.run(checkpoint, token="t2") == 1
    assert bench.state.fingerprint == "c" * 64
