"""Reads what a stage run has said of itself: the journal that asl_core/engine/journal.py writes.

A metric has one name here, in trackers, in metrics files and in tables. What has a slash in it is a
curve, `pretrain/loss`, or a sample of a machine, `system/<node>/...`; any other is a result,
`lp_acc1`, at step 0.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asl_core.engine.journal import SCHEMA_VERSION, SYSTEM_PREFIX, attempt_files
from asl_core.errors import InputError

_FIRST_LINES = 4
_NAMES = {"stage", "key", "suite", "fingerprint"}


@dataclass(frozen=True)
class Record:
    """One line of a journal.

    Attributes:
        attempt: Number of the attempt that wrote it, from 0.
        line: Its place in the attempt's file, from 0.
        kind: open, metrics, params, tags, dataset, artifact, resume, sync or end.
        time_ms: When it was written, in milliseconds since 1970 (UTC).
        body: What it says; non-finite numbers are floats again.
    """

    attempt: int
    line: int
    kind: str
    time_ms: int
    body: Mapping[str, Any]


Points = dict[str, list[tuple[int, float, int]]]
"""Metric -> (step, value, time in ms), by step."""


def read_records(folder: Path) -> list[Record]:
    """Read all attempts of a journal in order; the torn last line of a file is left out.

    Raises:
        InputError: A line that is not the last is no record, or a newer version wrote it.
    """
    return [
        record for number, path in attempt_files(folder) for record in _read_attempt(path, number)
    ]


def effective_points(folder: Path) -> Points:
    """Read the points of a journal that count: {key: [(step, value, time_ms), ...]} by step."""
    return points_of(read_records(folder))


def points_of(records: list[Record]) -> Points:
    """Reduce records to one value per key and step, sorted by step.

    A point is void when a later attempt resumed from before its step, or wrote the same step
    again. System metrics are kept whatever the steps were.
    """
    kept: dict[str, dict[int, tuple[float, int]]] = {}
    for record in records:
        if record.kind == "resume":
            _drop_after(kept, record)
        elif record.kind == "metrics":
            for key, value in record.body["values"].items():
                kept.setdefault(key, {})[record.body["step"]] = (value, record.time_ms)
    return {k: [(s, *steps[s]) for s in sorted(steps)] for k, steps in kept.items() if steps}


def is_result(name: str) -> bool:
    """Say whether a metric is what a stage has found out, and no curve or sample."""
    return "/" not in name


def last_losses(points: Points) -> dict[str, tuple[int, float, int]]:
    """Return the curves whose last points are results of pre-training too, each with that point.

    These are the losses, and the distance of ASL's branches.
    """
    return {
        name: values[-1]
        for name, values in points.items()
        if name.startswith("pretrain/loss") or name == "pretrain/branch_distance"
    }


@dataclass(frozen=True)
class RunName:
    """Which stage run a journal is of.

    Attributes:
        stage: `pretrain`.
        key: `asl`.
        suite: Name of the suite.
        fingerprint: Key under which the result is filed.
        started: When the attempt that says so began, in seconds since 1970.
    """

    stage: str
    key: str
    suite: str
    fingerprint: str
    started: float


def read_run_name(journal: Path) -> RunName | None:
    """Return which run a journal is of, None where it does not say; reads only first lines.

    The newest attempt that says so counts: two suites may share a run.
    """
    for _, path in reversed(attempt_files(journal)):
        begin = first_lines(path)
        for line in begin:
            said = line.get("values", {})
            if line.get("kind") == "tags" and said.keys() >= _NAMES:
                return RunName(
                    said["stage"], said["key"], said["suite"], said["fingerprint"],
                    started=begin[0]["t"] / 1000,
                )  # fmt: skip
    return None


def first_lines(attempt: Path) -> list[dict[str, Any]]:
    """Return what an attempt says first: where it runs, which run it is, whether a job makes it."""
    found = []
    with attempt.open(encoding="utf-8") as file:
        for line, _ in zip(file, range(_FIRST_LINES), strict=False):
            try:
                found.append(json.loads(line))
            except ValueError:  # being written
                break
    return found


def _drop_after(kept: dict[str, dict[int, tuple[float, int]]], resume: Record) -> None:
    for key, steps in kept.items():
        if not key.startswith(SYSTEM_PREFIX):
            for step in [step for step in steps if step > resume.body["step"]]:
                del steps[step]


def _read_attempt(path: Path, attempt: int) -> Iterator[Record]:
    lines = path.read_bytes().split(b"\n")
    # What follows the last newline is empty, or a line that a crash has torn.
    for number, line in enumerate(lines[:-1]):
        try:
            body = json.loads(line)
            version, kind, time_ms = body.pop("v"), body.pop("kind"), body.pop("t")
        except (ValueError, KeyError, AttributeError) as error:
            if number == len(lines) - 2:
                return
            raise InputError(
                f"{path}, line {number + 1}: not a journal record; remove the line"
            ) from error
        if version > SCHEMA_VERSION:
            raise InputError(
                f"{path}, line {number + 1}: written by a newer version of this program "
                f"(schema {version}, known {SCHEMA_VERSION}); update it"
            )
        if kind == "metrics":
            body["values"] = {key: float(value) for key, value in body["values"].items()}
        yield Record(attempt, number, kind, time_ms, body)
