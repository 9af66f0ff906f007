"""What a suite cost as text, Markdown, CSV and JSON: rounded for people, whole for programs."""

import csv
import dataclasses
import io
import json
from collections.abc import Sequence
from typing import Any

from pipeline.config.cost_factors import CostFactors
from pipeline.jobs.usage import ACCOUNTING, JOURNAL, RECORD, RunCost
from pipeline.rounding import fixed
from pipeline.tables.spending import Amount, Spending

UNKNOWN = "n/a"
_SOURCES = {ACCOUNTING: "accounting", RECORD: "job records", JOURNAL: "journals"}
GIB = 2**30
_NAMES = {
    "waiting": "waiting h", "hours": "hours", "lost_hours": "lost h", "gpu_hours": "GPU-h",
    "lost_gpu_hours": "lost GPU-h", "cpu_hours": "CPU-h", "kwh": "kWh", "co2_kg": "kg CO2",
    "price": "price",
}  # fmt: skip


def table(rows: Sequence[Spending], factors: CostFactors) -> tuple[list[str], list[list[str]]]:
    """Return headings and rows as text, without the columns of which nothing is known.

    n/a stands where nothing is known, + behind a sum where it is at least so much.
    """
    names, lines = _headings(factors), [_cells(row) for row in rows]
    shown = [i for i, _ in enumerate(names) if any(line[i] != UNKNOWN for line in lines)]
    return [names[i] for i in shown], [[line[i] for i in shown] for line in lines]


def _headings(factors: CostFactors) -> list[str]:
    amounts = [{**_NAMES, "price": factors.currency}[name] for name in _NAMES]
    return [
        "stage", "runs", "starts", *amounts[:6], "CPU use", "memory GiB", "GPU use", *amounts[6:],
        "projected h", "measured h", "ratio", "from",
    ]  # fmt: skip


def _cells(row: Spending) -> list[str]:
    amounts = [_amount(getattr(row, name)) for name in _NAMES]
    return [
        row.stage, str(row.runs), str(row.starts), *amounts[:6], _percent(row.cpu_use),
        _memory(row.memory), _percent(row.gpu_use), *amounts[6:], _plain(row.projected_hours),
        _plain(row.measured_hours), _plain(row.ratio), _sources(row),
    ]  # fmt: skip


def notes(rows: Sequence[Spending], factors: CostFactors) -> list[str]:
    """Return what has to be said of the numbers."""
    if not rows:
        return []
    total = rows[-1]
    said = [
        "each figure is from the scheduler's accounting, else from the job's record, else from the "
        "run's journal (column from: how many starts); use and energy of GPUs: from journals",
        "lost: work after the checkpoint from which a run went on, and all of runs that failed",
    ]
    amounts = [getattr(row, name) for row in rows for name in _NAMES]
    if any(amount.value is not None and not amount.whole for amount in amounts):
        said.append("+: at least so much; of some starts it is not known")
    names, whole = table(rows, factors)[0], _headings(factors)
    if unknown := [name for name in whole if name not in names]:
        said.append(f"n/a for all: {', '.join(unknown)}")
    if total.kwh.value is not None:
        kinds = "GPUs and, by watts_per_cpu, CPUs" if factors.watts_per_cpu is not None else (
            "GPUs alone"
        )  # fmt: skip
        assumed = "; some of it by the factors and not measured" if total.assumed else ""
        said.append(f"energy: of {kinds}{assumed}")
    missing = [
        name
        for name in ("per_gpu_hour", "per_cpu_hour", "grams_co2_per_kwh")
        if getattr(factors, name) is None
    ]
    if missing:
        said.append(f"not set under cost in cluster.yaml: {', '.join(missing)}")
    if total.projected_hours is not None:
        said.append("projected: by the newest rehearsal, of those runs that have succeeded")
    return said


def markdown(rows: Sequence[Spending], factors: CostFactors) -> str:
    """Return the table as Markdown."""
    names, lines = table(rows, factors)
    whole = [names, ["---"] * len(names), *lines]
    shown = ["| " + " | ".join(line) + " |" for line in whole]
    remarks = [f"- {note}" for note in notes(rows, factors)]
    return "\n".join(["## What it cost", "", *shown, "", *remarks, ""])


def csv_text(rows: Sequence[Spending], factors: CostFactors) -> str:
    """Return the table as CSV, not rounded; nothing stands where nothing is known."""
    out = io.StringIO()
    records = [_record(row, factors) for row in rows]
    if not records:
        return ""
    writer = csv.DictWriter(out, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue()


def json_text(
    rows: Sequence[Spending],
    factors: CostFactors,
    costs: Sequence[RunCost],
    problems: Sequence[str],
) -> str:
    """Return the table as JSON with every start of every run, and where each figure is from."""
    content = {
        "factors": factors.model_dump(),
        "stages": [_record(row, factors) for row in rows],
        "runs": [
            {
                "run": cost.name, "fingerprint": cost.fingerprint, "status": str(cost.status),
                "starts": [_start(dataclasses.asdict(start)) for start in cost.starts],
            }
            for cost in costs
        ],
        "problems": list(problems),
    }  # fmt: skip
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _start(fields: dict[str, Any]) -> dict[str, Any]:
    return {**fields, "sources": dict(fields["sources"])}


def _record(row: Spending, factors: CostFactors) -> dict[str, Any]:
    amounts: dict[str, Any] = {}
    for name in _NAMES:
        amount: Amount = getattr(row, name)
        amounts[name] = amount.value
    partial = [name for name in _NAMES if not getattr(row, name).whole]
    peak, given = row.memory or (None, None)
    return {
        "stage": row.stage, "runs": row.runs, "starts": row.starts, **amounts,
        "currency": factors.currency, "cpu_use": row.cpu_use, "memory_peak_bytes": peak,
        "memory_given_bytes": given, "gpu_use": row.gpu_use, "energy_assumed": row.assumed,
        "projected_hours": row.projected_hours, "measured_hours": row.measured_hours,
        "ratio": row.ratio, "at_least": " ".join(partial), "from": _sources(row),
    }  # fmt: skip


def _amount(amount: Amount) -> str:
    return UNKNOWN if amount.value is None else _plain(amount.value) + "+" * (not amount.whole)


def _plain(value: float | None) -> str:
    """Return a number with two decimals, small ones with two digits; n/a where there is none."""
    if value is None:
        return UNKNOWN
    return fixed(value, 2) if value == 0 or abs(value) >= 0.1 else f"{value:.2g}"


def _percent(share: float | None) -> str:
    return UNKNOWN if share is None else f"{fixed(share * 100, 0)} %"


def _memory(memory: tuple[float, float | None] | None) -> str:
    if memory is None:
        return UNKNOWN
    peak, given = memory
    return fixed(peak / GIB, 2) + ("" if given is None else f" of {fixed(given / GIB, 1)}")


def _sources(row: Spending) -> str:
    return ", ".join(f"{_SOURCES[name]} {count}" for name, count in sorted(row.sources.items()))
