"""The journal as it is read: what was written comes back, whatever the crash, once a step."""

import json
import math
from pathlib import Path

import pytest

from asl_core.engine.journal import Journal
from asl_core.errors import InputError
from pipeline.jobs.journal import (
    effective_points,
    is_result,
    last_losses,
    read_records,
    read_run_name,
)
from pipeline.jobs.liveness import find_status, has_succeeded


def values_of(folder: Path, key: str) -> dict[int, float]:
    return {step: value for step, value, _ in effective_points(folder).get(key, [])}


def test_every_kind_of_record_comes_back_in_order(tmp_path: Path) -> None:
    with Journal.open(tmp_path) as journal:
        journal.tags({"stage": "pretrain"})
        journal.params({"epochs": 12, "augment": None, "betas": (0.9, 0.95), "lr": 0.5})
        journal.dataset("icons", "md5:1", "data/icons", "train")
        journal.metrics(3, {"pretrain/loss": 0.25})
        journal.artifact("pictures/a.png")
        journal.sync()
        journal.end("SUCCEEDED", "all well")
    records = read_records(tmp_path)
    assert [record.kind for record in records] == [
        "open", "tags", "params", "dataset", "metrics", "artifact", "sync", "end", "sync",
    ]  # fmt: skip
    assert records[2].body["values"] == {
        "epochs": 12, "augment": None, "betas": "(0.9, 0.95)", "lr": 0.5,
    }  # fmt: skip
    assert records[7].body == {"status": "SUCCEEDED", "message": "all well"}
    assert [record.time_ms for record in records] == sorted(record.time_ms for record in records)
    assert [record.line for record in records] == list(range(9))


def test_a_torn_last_line_is_left_out_wherever_it_is_cut(tmp_path: Path) -> None:
    with Journal.open(tmp_path) as journal:
        journal.metrics(1, {"pretrain/loss": 1.0})
        journal.metrics(2, {"pretrain/loss": 2.0})
    path = tmp_path / "attempt-000.jsonl"
    whole = path.read_bytes()
    start_of_last = whole.rstrip(b"\n").rindex(b"\n") + 1
    for length in range(start_of_last, len(whole)):
        path.write_bytes(whole[:length])
        assert values_of(tmp_path, "pretrain/loss") == {1: 1.0}


def test_a_resume_after_a_torn_line_reads_both_attempts(tmp_path: Path) -> None:
    with Journal.open(tmp_path) as journal:
        journal.metrics(1, {"pretrain/loss": 1.0})
    with (tmp_path / "attempt-000.jsonl").open("a") as file:
        file.write('{"v": 1, "kind": "metr')
    with Journal.open(tmp_path, start_step=1) as journal:
        journal.metrics(2, {"pretrain/loss": 2.0})
    assert values_of(tmp_path, "pretrain/loss") == {1: 1.0, 2: 2.0}


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    with Journal.open(tmp_path) as journal:
        journal.metrics(1, {"pretrain/loss": 1.0})
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
            journal.metrics(step, {"pretrain/loss": float(step)})
    with Journal.open(tmp_path) as journal:
        journal.resume(20)
        journal.metrics(30, {"pretrain/loss": -30.0})
    assert values_of(tmp_path, "pretrain/loss") == {10: 10.0, 20: 20.0, 30: -30.0}


def test_points_that_an_attempt_writes_after_its_resume_are_not_void(tmp_path: Path) -> None:
    with Journal.open(tmp_path, start_step=0) as journal:
        journal.metrics(5, {"pretrain/loss": 5.0})
    assert values_of(tmp_path, "pretrain/loss") == {5: 5.0}


def test_system_metrics_survive_a_resume(tmp_path: Path) -> None:
    with Journal.open(tmp_path) as journal:
        journal.metrics(100, {"system/a/cpu_utilization_percentage": 50.0})
    Journal.open(tmp_path, start_step=7).close()
    assert values_of(tmp_path, "system/a/cpu_utilization_percentage") == {100: 50.0}


def test_a_step_written_twice_has_its_last_value(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        with Journal.open(tmp_path) as journal:
            journal.metrics(0, {"lp_acc1": value})
    assert values_of(tmp_path, "lp_acc1") == {0: 2.0}


def test_numbers_that_are_not_finite_come_back_as_floats(tmp_path: Path) -> None:
    with Journal.open(tmp_path) as journal:
        journal.metrics(1, {"a": math.nan, "b": math.inf, "c": -math.inf})
    points = effective_points(tmp_path)
    assert math.isnan(points["a"][0][1])
    assert (points["b"][0][1], points["c"][0][1]) == (math.inf, -math.inf)
    assert "NaN" not in (tmp_path / "attempt-000.jsonl").read_text()  # it would not be JSON


def test_a_journal_says_which_run_it_is_of_before_it_is_read(tmp_path: Path) -> None:
    assert read_run_name(tmp_path) is None
    for suite in ("table1", "table2"):  # two suites may share a run
        with Journal.open(tmp_path) as journal:
            journal.tags({"stage": "pretrain", "key": "asl", "suite": suite, "fingerprint": "f"})
    with Journal.open(tmp_path) as journal:
        journal.tags({"exit_code": "1"})  # of a job that another process has ended
        journal.end("FAILED")
    name = read_run_name(tmp_path)
    assert name is not None
    assert (name.stage, name.key, name.suite, name.fingerprint) == (
        "pretrain", "asl", "table2", "f",
    )  # fmt: skip
    assert not has_succeeded(tmp_path)
    with Journal.open(tmp_path) as journal:
        journal.end("SUCCEEDED")
    assert has_succeeded(tmp_path)


def test_an_end_in_the_words_of_another_version_is_named(tmp_path: Path) -> None:
    line = {"v": 1, "kind": "end", "t": 0, "status": "FINISHED", "message": ""}
    (tmp_path / "attempt-000.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(InputError, match="'FINISHED', which another version"):
        find_status(read_records(tmp_path))


def test_results_and_the_ends_of_losses_are_told_from_curves() -> None:
    points = {"pretrain/loss": [(1, 2.0, 0), (2, 1.0, 0)], "pretrain/lr": [(2, 0.1, 0)]}
    assert last_losses(points) == {"pretrain/loss": (2, 1.0, 0)}
    names = ("lp_acc1", "pretrain/loss", "system/n1/disk_usage_percentage")
    assert [is_result(name) for name in names] == [True, False, False]
