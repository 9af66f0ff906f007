"""The journal as it is written: whole lines, a file an attempt, no secrets; samples of machines."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from asl_core.engine.journal import Journal, first_time, redact
from asl_core.engine.system_metrics import SystemMetrics


def lines_of(folder: Path) -> list[dict[str, Any]]:
    paths = sorted(folder.glob("attempt-*.jsonl"))
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def values_of(folder: Path, key: str) -> dict[int, float]:
    metrics = [line for line in lines_of(folder) if line["kind"] == "metrics"]
    return {line["step"]: line["values"][key] for line in metrics if key in line["values"]}


def test_each_line_names_its_schema_version(tmp_path: Path) -> None:
    with Journal.open(tmp_path) as journal:
        journal.metrics(1, {"pretrain/loss": 1.0})
    assert {line["v"] for line in lines_of(tmp_path)} == {1}


def test_a_line_is_on_the_disk_as_soon_as_it_is_written(tmp_path: Path) -> None:
    with Journal.open(tmp_path) as journal:
        journal.metrics(1, {"pretrain/loss": 1.0})
        assert values_of(tmp_path, "pretrain/loss") == {1: 1.0}


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
    assert [len(values_of(tmp_path, f"thread/{number}")) for number in range(4)] == [200] * 4


def test_two_journals_opened_at_once_have_files_of_their_own(tmp_path: Path) -> None:
    with Journal.open(tmp_path) as one, Journal.open(tmp_path) as other:
        assert (one.path.name, other.path.name) == ("attempt-000.jsonl", "attempt-001.jsonl")


def test_a_journal_began_with_the_first_line_that_is_whole(tmp_path: Path) -> None:
    assert first_time(tmp_path) is None
    (tmp_path / "attempt-000.jsonl").write_text('{"v": 1, "kind": "op')
    assert first_time(tmp_path) is None
    with Journal.open(tmp_path) as journal:
        assert first_time(tmp_path) == json.loads(journal.path.read_text())["t"]


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
    (sample,) = (line["values"] for line in lines_of(tmp_path) if line["kind"] == "metrics")
    assert 0 <= sample["system/box/cpu_utilization_percentage"] <= 100
    assert sample["system/box/process_resident_megabytes"] > 5
    own = sample["system/box/process_resident_megabytes"]
    assert sample["system/box/process_peak_resident_megabytes"] == own


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
