"""Tables for programs: every cell with what a reader needs to judge its number, as JSON or CSV.

Numbers are as measured, not rounded. What the fields mean: docs/reference.md, "Tables".
"""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline.config.canonical import as_dict
from pipeline.tables.cells import Cell, Heading, Line, ResultTable
from pipeline.tables.collect import StageResult, Suite
from pipeline.tables.floor import exceeds_floor
from pipeline.tables.notes import mark, notes
from pipeline.tables.provenance import origins

FORMAT, VERSION = "asl-pipe tables", 1
"""What the file says it is. The version changes when a field changes its meaning or goes away."""

CSV_FIELDS: tuple[str, ...] = (
    "suite", "table", "row", "experiments", "metric", "name", "unit", "status", "value", "n",
    "deviation", "standard_error", "test_images", "dataset", "chance", "floor", "above_floor",
    "paper", "delta", "marks", "fingerprints", "commits",
)  # fmt: skip
"""Columns, in their order. One line for each cell; several runs are separated by a space."""

Commits = Mapping[tuple[str, str], str]
"""Stage and experiment -> the git commit that a run was made at."""


def json_tables(suite: Suite, tables: Sequence[ResultTable]) -> str:
    """Return a suite's tables as one JSON object, the same for the same results."""
    commits = _commits(suite)
    content = {
        "format": FORMAT,
        "version": VERSION,
        "suite": suite.name,
        "title": suite.title,
        "scale": suite.scale,
        "settings": _settings(suite),
        "tables": [_table(suite, table, commits) for table in tables],
    }
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def csv_tables(suite: Suite, tables: Sequence[ResultTable]) -> str:
    """Return a suite's tables as CSV (RFC 4180 but for the line ends), a line for each cell."""
    commits = _commits(suite)
    out = io.StringIO()
    writer = csv.DictWriter(out, CSV_FIELDS, lineterminator="\n")
    writer.writeheader()
    for table in tables:
        for line, heading, cell in table.cells():
            writer.writerow(_csv_line(suite, table, line, heading, cell, commits))
    return out.getvalue()


def _commits(suite: Suite) -> Commits:
    """Return the whole commit of each run, with a + where files differed from it."""
    found = {}
    for each in origins(suite):
        commit = each.tags.get("git.commit", "")
        dirty = commit and each.tags.get("git.dirty") == "true"
        found[each.result.stage, each.result.key] = commit + "+" * bool(dirty)
    return found


def _settings(suite: Suite) -> dict[str, dict[str, Any]]:
    """Return stage -> experiment -> its resolved settings."""
    found: dict[str, dict[str, Any]] = {}
    for (stage, key), run in suite.results.items():
        found.setdefault(stage, {})[key] = as_dict(run.recipe)
    return found


def _table(suite: Suite, table: ResultTable, commits: Commits) -> dict[str, Any]:
    return {
        "title": table.title,
        "caption": table.caption,
        "reduced": table.reduced,
        "given": list(table.given),
        "columns": [
            {
                "metric": heading.metric.name, "name": heading.name, "unit": heading.metric.unit,
                "stage": heading.metric.stage, "meaning": heading.metric.meaning,
                "decimals": heading.metric.decimals, "paper_table": heading.paper_table or None,
                "paper_data": heading.paper_data or None,
            }
            for heading in table.headings
        ],
        "rows": [
            {
                "row": line.label, "experiments": list(line.keys), "given": list(line.given),
                "untrained": line.untrained, "quoted": line.quoted,
                "cells": [_cell(suite, cell, commits) for cell in line.cells],
            }
            for line in table.lines
        ],
        "warnings": list(table.warnings),
        "notes": notes(table),
    }  # fmt: skip


def _cell(suite: Suite, cell: Cell, commits: Commits) -> dict[str, Any]:
    above = exceeds_floor(cell)
    return {
        "metric": cell.metric.name,
        "status": cell.status,
        "value": cell.ours,
        "n": len(cell.measured),
        "deviation": cell.spread,
        "standard_error": _single(cell),
        "test_images": _alike([run.test_images for run in cell.counted]),
        "dataset": _dataset(suite, cell),
        "chance": cell.chance,
        "floor": cell.floor.ours if cell.floor else None,
        "above_floor": above,
        "paper": cell.paper,
        "delta": cell.delta,
        "other_data": cell.other_data or None,
        "marks": mark(cell),
        "runs": [_run(suite, cell, place, commits) for place in range(len(cell.runs))],
    }


def _run(suite: Suite, cell: Cell, place: int, commits: Commits) -> dict[str, Any]:
    run = cell.runs[place]
    seeds = {each.key: getattr(each.recipe, "seed", None) for each in suite.experiments}
    errors = cell.errors or (None,) * len(cell.runs)
    return {
        "stage": run.stage,
        "experiment": run.key,
        "seed": seeds.get(run.key),
        "value": cell.values[place],
        "standard_error": errors[place],
        "test_images": run.test_images,
        "state": "in doubt" if run.difference else run.state,
        "vouched": run.vouched,
        "fingerprint": run.fingerprint,
        "commit": commits.get((run.stage, run.key)) or None,
        "file": run.file,
        "command": run.command,
    }


def _csv_line(
    suite: Suite,
    table: ResultTable,
    line: Line,
    heading: Heading,
    cell: Cell,
    commits: Commits,
) -> dict[str, Any]:
    content = _cell(suite, cell, commits)
    counted = cell.counted
    own: dict[str, Any] = {
        "suite": suite.name,
        "table": table.title,
        "row": line.label,
        "experiments": " ".join(line.keys),
        "name": heading.name,
        "unit": heading.metric.unit,
        "fingerprints": _joined(counted, lambda run: run.fingerprint or "-"),
        "commits": _joined(counted, lambda run: commits.get((run.stage, run.key)) or "-"),
    }
    found = {name: own.get(name, content.get(name)) for name in CSV_FIELDS}
    return {name: _text(value) for name, value in found.items()}


def _text(value: Any) -> str:
    """Return a field as CSV has it: nothing for None, true and false, numbers in full."""
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _joined(runs: Sequence[StageResult], form: Callable[[StageResult], str]) -> str:
    return " ".join(form(run) for run in runs)


def _single(cell: Cell) -> float | None:
    """Return the standard error over the test images of a number that one run has measured."""
    known = [error for error in cell.errors if error is not None]
    return known[0] if len(cell.measured) == 1 and known else None


def _dataset(suite: Suite, cell: Cell) -> str | None:
    names = [getattr(run.recipe, "dataset", None) for run in cell.counted]
    return _alike([name and suite.images_of(name) for name in names])


def _alike(values: Sequence[Any]) -> Any:
    """Return what all have, None where they differ."""
    found = set(values)
    return found.pop() if len(found) == 1 else None
