"""The journal: what is written comes back, whatever the crash, and once for each step."""

import json
import math
import threading
from pathlib import Path

import pytest

from asl_core.engine.records import Journal, effective_points, read_records, redact
from asl_core.engine.system_metrics import SystemMetrics
from asl_core.errors import InputError


def values_of(folder: Path, key: str) -> dict[int, float]:
    return {step: value for step, value, _ in effective_points(folder).get(key, [])}


def test_every_kind_of_record_comes_back_in_order(tmp_path: Path) -> None:
    with Journal.open(tmp_path) as journal:
        journal.tags({"stage": "pretrain"})
        journal.params({"epochs": 12, "augment": None, "betas": (0.9, 0.95), "lr": 0.5})
        journal.dataset("icons", "md5:1", "data/icons", "train")
        journal.metrics(3, {"train/loss": 0.25})
        journal.artifact("pictures/a.png")
        journal.sync()
        journal.end("FINISHED", "all well")
    records = read_records(tmp_path)
    assert [record.kind for record in records] == [
        "open", "tags", "params", "dataset", "metrics", "artifact", "sync", "end", "sync",
    ]  # fmt: skip
    assert records[2].body["values"] == {
        "epochs": 12, "augment": None, "betas": "(0.9, 0.95)", "lr": 0.5,
    }  # fmt: skip
    assert records[7].body == {"status": "FINISHED", "message": "all well"}
    assert [record.time_ms for record in records] == sorted(record.time_ms for record in records)
    assert [record.line for record in records] == list(range(9))


def test_each_line_names_its_schema_version(tmp_path: Path) -> None:
    with Journal.open(tmp_path) as journal:
        journal.metrics(1, {"train/loss": 1.0})
    lines = (tmp_path / "attempt-000.jsonl").read_text().splitlines()
    assert {json.loads(line)["v"] for line in lines} == {1}


def test_a_line_is_on_the_disk_as_soon_as_it_is_written(tmp_path: Path) -> None:
    with Journal.open(tmp_path) as journal:
        journal.metrics(1, {"train/loss": 1.0})
        assert values_of(tmp_path, "train/loss") == {1: 1.0}


def test_a_torn_last_line_is_left_out_wherever_it_is_cut(tmp_path: Path) -> None:
    with Journal.open(tmp_path) as journal:
        journal.metrics(1, {"train/loss": 1.0})
        journal.metrics(2, {"train/loss": 2.0})
    path = tmp_path / "attempt-000.jsonl"
    whole = path.read_bytes()
    start_of_last = whole.rstrip(b"\n").rindex(b"\n") + 1
    for length in range(start_of_last, len(whole)):
        path.write_bytes(whole[:length])
        assert values_of(tmp_path, "train/loss") == {1: 1.0}


def test_a_resume_after_a_torn_line_reads_both_attempts(tmp_path: Path) -> None:
    with Journal.open(tmp_path) as journal:
        journal.metrics(1, {"train/loss": 1.0})
    with (tmp_path / "attempt-000.jsonl").open("a") as file:
        file.write('{"v": 1, "kind": "metr')
    with Journal.open(tmp_path, start_step=1) as journal:
        journal.metrics(2, {"train/loss": 2.0})
    assert values_of(tmp_path, "train/loss") == {1: 1.0, 2: 2.0}


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    with Journal.open(tmp_path) as journal:
        journal.metrics(1, {"train/loss": 1.0})
    path = tmp_path / "attempt-000.jsonl"
    path.write_text("no record\n" + path.read_text())
    with pytest.raises(InputError, match=r"attempt-000.jsonl, line 1: not a journal record"):
        read_records(tmp_path)


def test_a_journal_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "attempt-000.jsonl").write_text('{"v": 2, "kind": "open", "t": 0}\n')
    with pytest.raises(InputError, match="newer version"):
        read_records(tmp_path)


def test_points_after_the_step_that_a_resume_starts_from_are_void(tmp_path: Path) -> None:
    with Journal.open(tmp_path) as journal:
        for step in (10, 20, 30, 35):
            journal.metrics(step, {"train/loss": float(step)})
    with Journal.open(tmp_path) as journal:
        journal.resume(20)
        journal.metrics(30, {"train/loss": -30.0})
    assert values_of(tmp_path, "train/loss") == {10: 10.0, 20: 20.0, 30: -30.0}


def test_points_that_an_attempt_writes_after_its_resume_are_not_void(tmp_path: Path) -> None:
    with Journal.open(tmp_path, start_step=0) as journal:
        journal.metrics(5, {"train/loss": 5.0})
    assert values_of(tmp_path, "train/loss") == {5: 5.0}


def test_system_metrics_survive_a_resume(tmp_path: Path) -> None:
    with Journal.open(tmp_path) as journal:
        journal.metrics(100, {"system/a/cpu_utilization_percentage": 50.0})
    Journal.open(tmp_path, start_step=7).close()
    assert values_of(tmp_path, "system/a/cpu_utilization_percentage") == {100: 50.0}


def test_a_step_written_twice_has_its_last_value(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        with Journal.open(tmp_path) as journal:
            journal.metrics(0, {"final/lp_acc1": value})
    assert values_of(tmp_path, "final/lp_acc1") == {0: 2.0}


def test_numbers_that_are_not_finite_come_back_as_floats(tmp_path: Path) -> None:
    with Journal.open(tmp_path) as journal:
        journal.metrics(1, {"a": math.nan, "b": math.inf, "c": -math.inf})
    points = effective_points(tmp_path)
    assert math.isnan(points["a"][0][1])
    assert (points["b"][0][1], points["c"][0][1]) == (math.inf, -math.inf)
    assert "NaN" not in (tmp_path / "attempt-000.jsonl").read_text()  # it would not be JSON


def test_threads_do_not_tear_each_others_lines(tmp_path: Path) -> None:
    with Journal.open(tmp_path) as journal:

        def write(thread: int) -> None:
            for step in range(200):
                journal.metrics(step, {f"thread/{thread}": float(step)})

        threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    points = effective_points(tmp_path)
    assert [len(points[f"thread/{number}"]) for number in range(4)] == [200] * 4


def test_two_journals_opened_at_once_have_files_of_their_own(tmp_path: Path) -> None:
    with Journal.open(tmp_path) as one, Journal.open(tmp_path) as other:
        assert (one.path.name, other.path.name) == ("attempt-000.jsonl", "attempt-001.jsonl")


def test_a_status_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    with Journal.open(tmp_path) as journal, pytest.raises(ValueError, match="DONE"):
        journal.end("DONE")


def test_passwords_never_reach_the_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "planted-secret")
    with Journal.open(tmp_path) as journal:
        journal.tags({"remote": "https://user:hunter22@example.org/x.git", "db_password": "abc"})
        journal.params({"note": "uses planted-secret", "api_key": "xyz", "tokens": 7})
        journal.dataset("d", "md5:1", "s3://key:hunter22@bucket/d", "train")
        journal.end("FAILED", "401 for planted-secret at http://me:hunter22@host:5000/")
    text = (tmp_path / "attempt-000.jsonl").read_text()
    for secret in ("planted-secret", "hunter22", "abc", "xyz"):
        assert secret not in text
    assert '"tokens": 7' in text


def test_redacting_leaves_addresses_without_users_alone() -> None:
    assert redact("http://host:5000/a@b") == "http://host:5000/a@b"
    assert redact("postgresql://me:pa@ss@host/db") == "postgresql://***@host/db"
    assert redact("db://h/d?user=me&password=hunter22&x=1") == "db://h/d?user=me&password=***&x=1"


def test_system_metrics_are_sampled_at_least_once_under_the_names_of_mlflow(
    tmp_path: Path,
) -> None:
    with Journal.open(tmp_path) as journal, SystemMetrics(journal, interval=60, node="box"):
        pass
    points = effective_points(tmp_path)
    assert 0 <= points["system/box/cpu_utilization_percentage"][0][1] <= 100
    own = points["system/box/process_resident_megabytes"][0][1]
    assert own > 5
    assert points["system/box/process_peak_resident_megabytes"][0][1] == own


def test_the_steps_of_system_metrics_go_on_after_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1_000_000.0]
    monkeypatch.setattr("time.time_ns", lambda: int(now[0] * 1e9))
    monkeypatch.setattr("time.time", lambda: now[0])
    for _ in range(2):
        with Journal.open(tmp_path) as journal, SystemMetrics(journal, interval=60, node="box"):
            now[0] += 100
    assert [*values_of(tmp_path, "system/box/disk_usage_percentage")] == [100, 200]
