"""What is kept of a job: written whole, read safely, by one at a time."""

import errno
import json
import multiprocessing
import os
import shutil
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from asl_core.engine.journal import Journal
from pipeline.errors import SupersededError
from pipeline.jobs import claim as claims
from pipeline.jobs import local_run
from pipeline.jobs.claim import claim
from pipeline.jobs.fence import Fence
from pipeline.jobs.folder import JobFolder
from pipeline.jobs.job import (
    Attempt,
    Job,
    Terms,
    comment_of,
    new_token,
    read_attempts,
    read_job,
    token_in,
    write_attempt,
    write_job,
)
from pipeline.jobs.local_run import host_of_local_run
from pipeline.jobs.progress import Progress, ProgressReader
from pipeline.jobs.reporter import Reporter, as_fields
from pipeline.jobs.state import JobState, RunStatus, read_state, write_state
from pipeline.results.code import code_folder, freeze, read_code
from pipeline.results.documents import differences, missing_deps, recipe_id, with_deps, with_outs
from pipeline.submission import hand_over
from pipeline.submission.hand_over import prepare_attempt
from pipeline.worker.process import granted

DOCUMENT = {
    "cmd": "asl-pipe run pretrain asl",
    "deps": [
        {"path": "asl_core/engine", "hash": "md5", "md5": "e" * 32, "size": 9, "nfiles": 2},
        {"path": "data/icons", "hash": "md5"},
    ],
    "params": {"params.yaml": {"experiments.asl": {"method": "asl", "lr": 0.001}, "scale": "x"}},
    "outs": [{"path": "runs/b.json", "hash": "md5"}, {"path": "runs/a", "hash": "md5"}],
}
TERMS = Terms(
    snapshot="s", resources={"threads": 2}, asked={"setup": ["module load cuda"]},
    upstream={"data/icons": "f" * 64}, data_root="/data",
)  # fmt: skip

ROOT = Path(__file__).parents[2]


@pytest.fixture
def paths(tmp_path: Path) -> JobFolder:
    made = JobFolder.of(tmp_path / ".asl", "f" * 64)
    made.folder.mkdir(parents=True)
    return made


def make_attempt(number: int, **changes) -> Attempt:
    return Attempt(
        **{"number": number, "token": f"t{number}", "submitted": 1.0, "host": "h", "user": "u",
           "terms": TERMS, "after": ("1", "2"), **changes}
    )  # fmt: skip


@pytest.mark.parametrize(
    ("gpus", "asked", "device", "threads"),
    [(0, "auto", "auto", None), (8, "auto", "cuda", 4), (8, "cpu", "cpu", None)],
)
def test_a_job_that_asked_for_gpus_computes_on_no_cpu(
    gpus: int, asked: str, device: str, threads: int | None
) -> None:
    terms = replace(TERMS, asked={"gpus": gpus}, resources={"device": asked, "num_workers": 2})
    resources = granted(terms, {"ASL_JOB_CPUS": "6"})
    assert (resources.device, resources.threads) == (device, threads)


# Records


def test_a_job_is_read_as_it_was_written_parameters_in_their_order(paths: JobFolder) -> None:
    job = Job(
        stage="pretrain", key="asl", name="pretrain@asl", suite=".", fingerprint="f" * 64,
        recipe="r", document=DOCUMENT, submitted=1.0, host="h", user="u",
    )  # fmt: skip
    write_job(paths, job)
    read = read_job(paths)
    assert read == job
    assert read is not None
    assert json.dumps(read.document) == json.dumps(DOCUMENT)


def test_attempts_are_read_in_order_and_damaged_ones_left_out(paths: JobFolder) -> None:
    for number in (2, 1, 10):
        write_attempt(paths, make_attempt(number))
    (paths.attempts / "003.json").write_text("{")
    assert [attempt.number for attempt in read_attempts(paths)] == [1, 2, 10]
    assert read_attempts(paths)[0] == make_attempt(1)


def test_of_two_attempts_prepared_at_once_none_replaces_the_other(
    paths: JobFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(
        stage="pretrain", key="asl", name="pretrain@asl", suite=".", fingerprint="f" * 64,
        recipe="r", document=DOCUMENT, submitted=1.0, host="h", user="u",
    )  # fmt: skip
    token = hand_over.new_token

    def meanwhile() -> str:
        """Let another process prepare an attempt before this one is written."""
        monkeypatch.setattr(hand_over, "new_token", token)
        prepare_attempt(paths, job, TERMS)
        return token()

    monkeypatch.setattr(hand_over, "new_token", meanwhile)
    first = prepare_attempt(paths, job, TERMS).attempt
    assert sorted(attempt.number for attempt in read_attempts(paths)) == [1, 2]
    assert first in read_attempts(paths)


def test_what_a_newer_version_adds_is_ignored_and_what_is_missing_is_no_record(
    paths: JobFolder,
) -> None:
    write_attempt(paths, make_attempt(1))
    file = paths.attempts / "001.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"new": 1}))
    assert read_attempts(paths) == [make_attempt(1)]
    paths.job.write_text('{"stage": "pretrain"}')
    assert read_job(paths) is None
    paths.state.write_text('{"status": "DANCING"}')
    assert read_state(paths) is None


def test_a_token_survives_in_a_comment() -> None:
    token = new_token()
    assert comment_of("p-0123456789ab", token) == f"asl:01234567:{token}"
    assert token_in(comment_of("0123456789ab", token)) == token
    assert token_in("somebody else's") is None


# Documents


def test_a_document_is_filled_in_dvcs_order() -> None:
    assert missing_deps(DOCUMENT) == ["data/icons"]
    hashed = {"nfiles": 3, "size": 7, "md5": "d" * 32}
    filled = with_deps(DOCUMENT, {"data/icons": hashed})
    assert list(filled["deps"][1]) == ["path", "hash", "md5", "size", "nfiles"]
    assert missing_deps(filled) == []
    assert missing_deps(DOCUMENT) == ["data/icons"]
    done = with_outs(filled, {"runs/a": hashed, "runs/b.json": {"md5": "b" * 32, "size": 1}})
    assert [out["path"] for out in done["outs"]] == ["runs/a", "runs/b.json"]
    assert list(done["outs"][1].items())[2:] == [("md5", "b" * 32), ("size", 1)]
    with pytest.raises(KeyError):
        with_outs(filled, {"runs/a": hashed})


def test_a_recipe_does_not_depend_on_whether_an_input_exists() -> None:
    upstream = {"data/icons": "recipe of prepare"}
    before = recipe_id(DOCUMENT, upstream)
    there = with_deps(DOCUMENT, {"data/icons": {"md5": "d" * 32}})
    assert recipe_id(there, upstream) == before
    assert recipe_id(there, {"data/icons": "another"}) != before
    changed = {**DOCUMENT, "cmd": "asl-pipe run  pretrain asl"}
    assert recipe_id(changed, upstream) != before


def test_differences_name_keys_and_paths() -> None:
    new = json.loads(json.dumps(DOCUMENT))
    new["params"]["params.yaml"]["experiments.asl"] |= {"lr": 0.002, "epochs": 3}
    new["deps"][0]["md5"] = "0" * 32
    assert differences(DOCUMENT, new) == [
        "experiments.asl.epochs absent -> 3",
        "experiments.asl.lr 0.001 -> 0.002",
        "asl_core/engine",
    ]
    assert differences(DOCUMENT, DOCUMENT) == []


# Claims


def test_one_of_many_gets_a_claim(tmp_path: Path) -> None:
    won = [claim(tmp_path, "f", time.time()) for _ in range(5)]
    (mine,) = [each for each in won if each is not None]
    assert mine.is_held()
    mine.release()
    assert claim(tmp_path, "f", time.time()) is not None


def _contend(folder: str, barrier, queue) -> None:
    barrier.wait()
    held = claim(Path(folder), "f", time.time())
    queue.put(held is not None)
    barrier.wait()  # nobody dies before everybody has tried


def test_one_of_many_processes_gets_a_claim(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for round_number in range(5):
        folder = tmp_path / str(round_number)
        barrier, queue = context.Barrier(8), context.Queue()
        workers = [
            context.Process(target=_contend, args=(str(folder), barrier, queue)) for _ in range(8)
        ]
        for worker in workers:
            worker.start()
        won = [queue.get(timeout=30) for _ in workers]
        for worker in workers:
            worker.join()
        assert sum(won) == 1


def test_the_claim_of_a_dead_process_of_this_machine_is_taken_over_at_once(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(
        target=claim, args=(tmp_path, "f", time.time())
    )
    process.start()
    process.join()
    assert (tmp_path / "f.claim").is_dir()
    assert claim(tmp_path, "f", time.time()) is not None


def test_the_claim_of_another_machine_is_taken_over_after_five_minutes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims.socket, "gethostname", lambda: "login2")
    theirs = claim(tmp_path, "f", 1000.0)
    assert theirs is not None
    monkeypatch.undo()
    assert claim(tmp_path, "f", 1299.0) is None
    mine = claim(tmp_path, "f", 1301.0)
    assert mine is not None
    assert not theirs.is_held()
    theirs.release()  # too late: it is not theirs any more
    assert mine.is_held()


def test_of_two_that_find_a_claim_abandoned_one_gets_it(tmp_path: Path) -> None:
    for number in range(20):
        folder = tmp_path / str(number)
        assert claim(folder, "f", 0.0) is not None
        barrier, won = threading.Barrier(4), []

        def contend(folder: Path = folder, barrier=barrier, won=won) -> None:
            barrier.wait()
            won.append(claim(folder, "f", 1000.0))

        workers = [threading.Thread(target=contend) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert sum(each is not None and each.is_held() for each in won) == 1


@pytest.mark.parametrize("content", ["", "{}"])
def test_a_claim_whose_owner_cannot_be_read_is_taken_over_after_five_minutes(
    tmp_path: Path, content: str
) -> None:
    (tmp_path / "f.claim").mkdir()
    (tmp_path / "f.claim/owner.json").write_text(content)
    killed = tmp_path / ".f.claim.0123.new"
    killed.mkdir()
    now = time.time()
    assert claim(tmp_path, "f", now + 290) is None
    assert killed.exists()
    mine = claim(tmp_path, "f", now + 310)
    assert mine is not None
    assert mine.is_held()
    assert not killed.exists()
    assert claim(tmp_path, "f", now + 310) is None


# Runs of other machines


def test_a_run_of_another_machine_lives_as_long_as_its_journal_grows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = JobFolder(tmp_path)
    with Journal.open(job.journal) as journal:
        journal.tags({"stage": "pretrain"})
    now = time.time()
    assert host_of_local_run(job, now, 120.0) is None  # here its lock would tell
    here = socket.gethostname()
    monkeypatch.setattr(local_run.socket, "gethostname", lambda: "login2")
    assert host_of_local_run(job, now, 120.0) == here
    assert host_of_local_run(job, now + 121.0, 120.0) is None
    with Journal.open(job.journal) as journal:
        journal.tags({"stage": "pretrain"})
        journal.end("INTERRUPTED")
    assert host_of_local_run(job, now, 120.0) is None
    with Journal.open(job.journal) as journal:
        journal.tags({"stage": "pretrain", "job.id": "27"})
    assert host_of_local_run(job, now, 120.0) is None  # a job: it has a record of its own


# Fences


def test_a_newer_start_keeps_an_older_one_from_writing(paths: JobFolder) -> None:
    write_attempt(paths, make_attempt(1))
    older = Fence.put_up(paths.fence, paths, 1, 0)
    older.check()
    newer = Fence.put_up(paths.fence, paths, 1, 1)
    newer.check()
    with pytest.raises(SupersededError, match="was given up"):
        older.check()
    with pytest.raises(SupersededError, match="has taken over"):
        Fence.put_up(paths.fence, paths, 1, 0)
    write_attempt(paths, make_attempt(2))
    with pytest.raises(SupersededError, match="attempt 2"):
        newer.check()
    Fence.put_up(paths.fence, paths, 2, 0).check()


def test_a_fence_that_cannot_be_read_for_a_moment_supersedes_nobody(
    paths: JobFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.jobs.fence.PAUSES_S", (0.0, 0.0))
    write_attempt(paths, make_attempt(1))
    fence = Fence.put_up(paths.fence, paths, 1, 0)
    read, failures = Path.read_text, [errno.EIO, errno.ESTALE]

    def failing(self: Path, *args: Any, **kwargs: Any) -> str:
        if self == paths.fence and failures:
            raise OSError(failures.pop(), "the filesystem is away")
        return read(self, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", failing)
    fence.check()
    assert failures == []
    failures.extend([errno.EIO] * 3)
    with pytest.raises(OSError, match=r"cannot be read .*the filesystem is away"):
        fence.check()
    monkeypatch.setattr(Path, "read_text", read)
    paths.fence.unlink()
    with pytest.raises(SupersededError, match="was given up"):
        fence.check()


def test_a_refused_attempt_supersedes_nobody(paths: JobFolder) -> None:
    write_attempt(paths, make_attempt(1))
    fence = Fence.put_up(paths.fence, paths, 1, 0)
    write_attempt(paths, make_attempt(2, refused="no such account"))
    fence.check()


# Frozen code


def project_code(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    for name in ("asl_core", "pipeline"):
        compiled = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, root / name, ignore=compiled)
    for name in ("asl_core/a.py", "pipeline/b.py", "pipeline/__pycache__/b.pyc", "params.yaml"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


def test_code_is_frozen_once_and_read_only(tmp_path: Path) -> None:
    root, scratch = project_code(tmp_path), tmp_path / ".asl"
    digest = freeze(read_code(root), scratch)
    folder = code_folder(scratch, digest)
    files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert {"asl_core/a.py", "pipeline/b.py", "pipeline/tables/paper.yaml"} < files
    assert not {"params.yaml", "pipeline/__pycache__/b.pyc"} & files
    # what stands for it lies beside it, from the same reading
    text = (folder / "code/pretrain-asl.txt").read_text()
    assert text == read_code(root).identities["code/pretrain-asl.txt"]
    assert all(not p.stat().st_mode & 0o222 for p in folder.rglob("*") if p.is_file())
    (root / "pipeline/b.py").write_text("broken")
    assert (folder / "pipeline/b.py").read_text() == "pipeline/b.py"
    other = freeze(read_code(root), scratch)
    assert other != digest
    assert {p.name for p in (scratch / "code").iterdir()} == {digest, other}
    assert freeze(read_code(root), scratch) == other


def test_a_file_that_moves_is_other_code(tmp_path: Path) -> None:
    root = project_code(tmp_path)
    before = read_code(root).digest
    (root / "asl_core/a.py").rename(root / "asl_core/c.py")
    assert read_code(root).digest != before


# Progress and reports


def test_progress_follows_the_newest_attempt(tmp_path: Path) -> None:
    reader = ProgressReader(tmp_path, "pretrain")
    assert reader.read() == Progress()
    with Journal.open(tmp_path) as journal:
        journal.resume(0, 20)
        journal.metrics(5, {"pretrain/loss": 0.5, "pretrain/images_per_s": 100.0})
        journal.metrics(5, {"system/cpu": 1.0})
        assert reader.read() == Progress(5, 20, 0.5, 100.0)
        with journal.path.open("a") as file:
            file.write('{"kind": "metrics", "step": 9')  # half a line
        assert reader.read() == Progress(5, 20, 0.5, 100.0)
    with Journal.open(tmp_path) as journal:
        journal.resume(5, 20)
        journal.metrics(6, {"pretrain/loss": float("nan")})
        progress = reader.read()
        assert (progress.step, progress.total_steps) == (6, 20)
        assert as_fields(progress)["loss"] is None


def running(**changes) -> JobState:
    return JobState(
        **{"status": RunStatus.RUNNING, "attempt": 1, "token": "t", "heartbeat": 0.0,
           "started": 0.0, **changes}
    )  # fmt: skip


def test_a_heartbeat_tells_the_time_and_the_progress_and_stops(paths: JobFolder) -> None:
    now = iter(range(1, 10_000))
    reporter = Reporter(paths, running(), lambda: None, lambda: float(next(now)))
    reporter.begin()
    reporter.keep_beating(lambda: {"step": 7}, lambda: None, lambda: None, every_s=0.01)
    give_up = time.monotonic() + 10
    while (read_state(paths) or running()).heartbeat < 3 and time.monotonic() < give_up:
        time.sleep(0.01)
    reporter.end()
    state = read_state(paths)
    assert state is not None
    assert state.step == 7
    assert state.heartbeat >= 3
    reporter.update(status=RunStatus.FAILED)
    assert (read_state(paths) or running()).status is RunStatus.FAILED


def test_a_superseded_process_is_told_and_writes_nothing_more(paths: JobFolder) -> None:
    superseded = threading.Event()

    def check() -> None:
        if superseded.is_set():
            raise SupersededError("given up")

    told = threading.Event()
    reporter = Reporter(paths, running(), check, time.time)
    reporter.begin()
    write_state(paths, running(token="successor"))
    superseded.set()
    reporter.keep_beating(dict, lambda: None, told.set, every_s=0.01)
    assert told.wait(10)
    reporter.end()
    with pytest.raises(SupersededError):
        reporter.update(status=RunStatus.SUCCEEDED)
    assert (read_state(paths) or running()).token == "successor"


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)


def test_there_is_room_for_a_last_word_on_a_full_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.system(f"mount -t tmpfs -o size=512k tmpfs {disk} 2>/dev/null") != 0:
        pytest.skip("a small filesystem can only be mounted by root outside a container")
    try:
        paths = JobFolder(disk / ".asl/jobs/f")
        paths.folder.mkdir(parents=True)
        reporter = Reporter(paths, running(), lambda: None, time.time)
        reporter.begin()
        with pytest.raises(OSError, match="No space"):
            fill(disk / "big")
        reporter.update(status=RunStatus.FAILED, error="x" * 6000)
        state = read_state(paths)
        assert state is not None
        assert (state.status, len(state.error or "")) == (RunStatus.FAILED, 6000)
    finally:
        os.system(f"umount {disk}")
