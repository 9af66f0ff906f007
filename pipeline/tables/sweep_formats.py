"""Tables of sweeps as text cells, Markdown, CSV and JSON."""

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

from pipeline.rounding import fixed
from pipeline.tables.sweep import Candidate, SweepTable

DECIMALS = 2
DASH = "-"


def headings(table: SweepTable) -> list[str]:
    """Return the names of a table's columns."""
    return ["", "run", *table.fields, "n", table.metric.name, "s.e.", "floor", "state"]


def cells(table: SweepTable) -> list[list[str]]:
    """Return a table's rows, as text."""
    return [_row(table, place, each) for place, each in enumerate(table.candidates, start=1)]


def missing_commands(table: SweepTable) -> dict[str, str]:
    """Return run -> the command that makes it."""
    return {f"{run.stage}@{run.key}": run.command for run in table.missing}


def markdown(tables: Sequence[SweepTable]) -> str:
    """Return tables as Markdown."""
    parts: list[str] = []
    for table in tables:
        names = headings(table)
        rows = [names, ["---"] * len(names), *cells(table)]
        lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
        notes = [f"- {note}" for note in table.notes]
        parts.append("\n".join([f"## Sweep of {table.experiment}", "", *lines, "", *notes, ""]))
    return "\n".join(parts)


def csv_text(tables: Sequence[SweepTable]) -> str:
    """Return tables as CSV, not rounded; a line for each combination of each sweep."""
    swept = dict.fromkeys(name for table in tables for name in table.fields)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    fixed_names = ["sweep", "rank", "run", "experiments", "metric"]
    writer.writerow([*fixed_names, *swept, "n", "value", "standard_error", "floor", "state",
                     "fingerprints"])  # fmt: skip
    for table in tables:
        for place, each in enumerate(table.candidates, start=1):
            row = _record(table, place, each)
            values = [
                value_text_of(row["values"][name]) if name in row["values"] else ""
                for name in swept
            ]
            writer.writerow([
                table.experiment, row["rank"], each.name, " ".join(each.keys), table.metric.name,
                *values, row["n"], row["value"], row["standard_error"], row["floor"], row["state"],
                " ".join(filter(None, row["fingerprints"])),
            ])  # fmt: skip
    return out.getvalue()


def json_text(tables: Sequence[SweepTable]) -> str:
    """Return tables as JSON, not rounded."""
    content = [
        {
            "sweep": table.experiment, "metric": table.metric.name, "stage": table.metric.stage,
            "fields": table.fields, "notes": table.notes,
            "runs": [_record(table, place, each) for place, each in enumerate(table.candidates, 1)],
        }
        for table in tables
    ]  # fmt: skip
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _record(table: SweepTable, place: int, each: Candidate) -> dict[str, Any]:
    prints = [run.fingerprint for run in each.runs]
    return {
        "rank": None if each.value is None else place, "run": each.name,
        "experiments": list(each.keys), "values": dict(each.values), "n": len(each.measured),
        "value": each.value, "standard_error": each.error, "floor": each.floor,
        "state": state(each), "stopped": dict(each.stopped),
        "fingerprints": prints,
    }  # fmt: skip


def state(each: Candidate) -> str:
    """Return what is to be said of a row's runs; empty where there is nothing."""
    told: list[str] = []
    if each.missing:
        told.append(f"{len(each.missing)} of {len(each.runs)} missing")
    if each.stopped:
        told.append(f"{len(each.stopped)} of {len(each.runs)} stopped")
    if any(run.difference for run in each.runs):
        told.append("differs from dvc.lock")
    states = {run.state for run in each.runs} - {"missing", "current"}
    return ", ".join([*told, *sorted(states)])


def _row(table: SweepTable, place: int, each: Candidate) -> list[str]:
    values = [value_text_of(each.values[name]) for name in table.fields]
    numbers = (each.value, each.error, each.floor)
    return [
        DASH if each.value is None else str(place), each.name, *values, str(len(each.measured)),
        *(DASH if number is None else fixed(number, DECIMALS) for number in numbers), state(each),
    ]  # fmt: skip


def value_text_of(value: object) -> str:
    """Return a value as it is written in a suite."""
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return json.dumps(value).strip('"')
