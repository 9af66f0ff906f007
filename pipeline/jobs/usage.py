"""What the starts of a run took of machines, as far as its journal says. Reads only.

What nobody has measured is None, never 0.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from asl_core.engine.journal import SYSTEM_PREFIX
from pipeline.jobs.folder import NODE_PREFIX
from pipeline.jobs.journal import Record, read_records
from pipeline.jobs.liveness import find_status
from pipeline.jobs.state import RunStatus
from pipeline.jobs.usage_tags import CPU_SECONDS, CPUS, GPU_JOULES, GPUS, INDICES, PROCESSES

JOURNAL, RECORD, ACCOUNTING = "journal", "record", "accounting"
"""Where a figure is from: the run's journal, the job's record, the scheduler's accounting."""

COST = "cost/"
"""Begins what a run took where trackers show it."""

_MEGABYTE = 1e6
_SAMPLE = re.compile(
    re.escape(SYSTEM_PREFIX) + r"(?P<node>.+)/gpu_(?P<gpu>\d+)_(?P<what>utilization_percentage|"
    r"power_usage_watts)"
)
_PEAK = re.compile(re.escape(SYSTEM_PREFIX) + r".+/process_peak_resident_megabytes")


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What one start of a run took.

    Attributes:
        began: Seconds since 1970.
        ended: Likewise; None: not known.
        ready: Since when it could have begun: it was submitted, and what it needs was there.
        gpus, cpus: That it was given, over all nodes.
        cpu_s: Processor time that it used.
        memory: Bytes that it was given, over all nodes.
        memory_peak: Bytes that it used at most.
        gpu_use: Mean utilisation of its GPUs, in percent.
        joules: Energy of its GPUs.
        lost_s: Of its time, what had to be done again or came to nothing.
        job_id: The scheduler's; None where no job made it.
        attempt, restarts: Which start of a job it was, as the journal says.
        sources: Field -> where it is from.
    """

    began: float
    ended: float | None
    ready: float | None = None
    gpus: int | None = None
    cpus: int | None = None
    cpu_s: float | None = None
    memory: float | None = None
    memory_peak: float | None = None
    gpu_use: float | None = None
    joules: float | None = None
    lost_s: float = 0.0
    job_id: str | None = None
    attempt: int | None = None
    restarts: int | None = None
    sources: Mapping[str, str] = field(default_factory=dict)

    @property
    def seconds(self) -> float | None:
        """How long it lasted."""
        return None if self.ended is None else max(0.0, self.ended - self.began)

    @property
    def waited(self) -> float | None:
        """How long it waited for machines; None for what was started by hand."""
        return None if self.ready is None else max(0.0, self.began - self.ready)

    def overlaid(self, source: str, **found: object) -> "Usage":
        """Return it with the figures that another source knows; what that one lacks stays."""
        known = {name: value for name, value in found.items() if value is not None}
        sources = {**self.sources, **dict.fromkeys(known, source)}
        return dataclasses.replace(self, **known, sources=sources)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class RunCost:
    """All starts of one run.

    Attributes:
        stage: `pretrain`.
        key: `asl`.
        suite: Name of the suite.
        fingerprint: Under which its record or result lies.
        status: How far it is.
        starts: The first one first.
    """

    stage: str
    key: str
    suite: str
    fingerprint: str
    status: RunStatus
    starts: tuple[Usage, ...]

    @property
    def name(self) -> str:
        return f"{self.stage}@{self.key}"


def cost_in_journal(journal: Path, now: float | None = None) -> RunCost | None:
    """Return what a run took by its journal alone; None where it does not say which run it is.

    Args:
        journal: Its folder, those of other machines in it.
        now: Seconds since 1970, to which a run that goes on counts; absent: to its last line.

    Raises:
        InputError: A line of it is damaged, or of another version.
    """
    records = read_records(journal)
    tags = _tags(records)
    if not tags.keys() >= {"stage", "key", "suite", "fingerprint"}:
        return None
    others = [r for folder in sorted(journal.glob(f"{NODE_PREFIX}*")) for r in read_records(folder)]
    status, _, _ = find_status(records)
    starts = _starts(records, others, status)
    if status is RunStatus.RUNNING and now is not None:
        starts[-1] = dataclasses.replace(starts[-1], ended=max(now, starts[-1].began))
    return RunCost(
        stage=tags["stage"], key=tags["key"], suite=tags["suite"],
        fingerprint=tags["fingerprint"], status=status, starts=tuple(starts),
    )  # fmt: skip


def cost_of_records(
    records: Sequence[Record], others: Sequence[Record], status: RunStatus
) -> tuple[Usage, ...]:
    """Return the starts of a run whose journal has been read.

    Args:
        records: Its journal.
        others: Those of other machines.
        status: How far the run is.
    """
    return tuple(_starts(records, others, status))


def sums_of(starts: Sequence[Usage]) -> dict[str, float]:
    """Return what starts took together, as trackers call it; no sum that lacks a part."""
    found: dict[str, list[float | None]] = {
        "hours": [start.seconds for start in starts],
        "gpu_hours": [_times(start.seconds, start.gpus) for start in starts],
        "cpu_hours": [_times(start.seconds, start.cpus) for start in starts],
        "lost_hours": [start.lost_s for start in starts],
        # of CPUs nobody knows it: a run without GPUs says nothing of energy
        "gpu_kwh": [_times(start.joules, 1e-3) if start.gpus else None for start in starts],
    }
    sums: dict[str, float] = {}
    for name, seconds in found.items():
        known = [each for each in seconds if each is not None]
        if known and len(known) == len(seconds):
            sums[f"{COST}{name}"] = sum(known) / 3600
    return sums


def _times(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one * other


def _starts(records: Sequence[Record], others: Iterable[Record], status: RunStatus) -> list[Usage]:
    numbers = dict.fromkeys(record.attempt for record in records)
    attempts = [[r for r in records if r.attempt == number] for number in numbers]
    elsewhere: list[list[Record]] = [[] for _ in attempts]
    for record in others:  # other machines count their attempts otherwise: time tells
        places = [i for i, own in enumerate(attempts) if own[0].time_ms <= record.time_ms]
        if places:
            elsewhere[places[-1]].append(record)
    lost = _lost_seconds(attempts, status)
    return [
        _usage(own, more, lost_s)
        for own, more, lost_s in zip(attempts, elsewhere, lost, strict=True)
    ]


def _usage(records: Sequence[Record], others: Sequence[Record], lost_s: float) -> Usage:
    """Return what one attempt took."""
    tags = _tags(records)
    began, ended = records[0].time_ms / 1000, records[-1].time_ms / 1000
    gpus = _number(tags.get(GPUS))
    if gpus is None and (device := tags.get("device")) is not None:
        uuids = tags.get("gpu.uuids", "none")
        gpus = 0 if device == "cpu" else None if uuids == "none" else len(uuids.split(","))
    cpus, several = _number(tags.get(CPUS)), (_number(tags.get(PROCESSES)) or 1) > 1
    indices = tags.get(INDICES)
    chosen = None if indices is None else [int(i) for i in indices.split(",") if i]
    use, power = _gpu_samples([*records, *others], chosen)
    if gpus and others:  # what is said is of the first machine
        gpus = float(len(use) or len(power)) or None
    joules = None if others else _number(tags.get(GPU_JOULES))
    if joules is None and gpus and len(power) == gpus:
        joules = sum(_integral(points, began, ended) for points in power.values())
    values = [value for points in use.values() for _, value in points]
    found = {
        "began": began, "ended": ended, "lost_s": lost_s,
        "gpus": None if gpus is None else int(gpus), "cpus": None if cpus is None else int(cpus),
        # of one process alone; what others used, nobody says
        "cpu_s": None if several else _number(tags.get(CPU_SECONDS)),
        "memory_peak": _peak_bytes([*records, *others]),
        "gpu_use": sum(values) / len(values) if values and gpus else None,
        "joules": 0.0 if gpus == 0 else joules,
    }  # fmt: skip
    attempt, restarts = _number(tags.get("attempt")), _number(tags.get("restarts"))
    start = Usage(
        began=began, ended=ended, job_id=tags.get("job.id"),
        attempt=None if attempt is None else int(attempt),
        restarts=None if restarts is None else int(restarts),
    )  # fmt: skip
    return start.overlaid(JOURNAL, **found)


def _gpu_samples(
    records: Iterable[Record], chosen: Sequence[int] | None
) -> tuple[dict[tuple[str, int], list[tuple[float, float]]], ...]:
    """Return utilisation and power of the run's own GPUs: (node, GPU) -> (seconds, value).

    Args:
        records: Of all its machines.
        chosen: The numbers that NVML gives its GPUs; None: all that were sampled.
    """
    use: dict[tuple[str, int], list[tuple[float, float]]] = {}
    power: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for record in records:
        if record.kind != "metrics":
            continue
        for name, value in record.body["values"].items():
            match = _SAMPLE.fullmatch(name)
            if match is None or (chosen is not None and int(match["gpu"]) not in chosen):
                continue
            into = power if match["what"] == "power_usage_watts" else use
            place = (match["node"], int(match["gpu"]))
            into.setdefault(place, []).append((record.time_ms / 1000, float(value)))
    return use, power


def _integral(points: Sequence[tuple[float, float]], began: float, ended: float) -> float:
    """Return the area below samples; before the first and after the last it stays as it is."""
    ordered = sorted(points)
    area = sum((t2 - t1) * (v1 + v2) / 2 for (t1, v1), (t2, v2) in pairwise(ordered))
    (first, at_first), (last, at_last) = ordered[0], ordered[-1]
    return area + max(0.0, first - began) * at_first + max(0.0, ended - last) * at_last


def _peak_bytes(records: Iterable[Record]) -> float | None:
    """Return the most memory of the sampled processes, summed over machines."""
    peaks: dict[str, float] = {}
    for record in records:
        if record.kind == "metrics":
            for name, value in record.body["values"].items():
                if _PEAK.fullmatch(name):
                    peaks[name] = max(value, peaks.get(name, 0.0))
    return sum(peaks.values()) * _MEGABYTE if peaks else None


def _lost_seconds(attempts: Sequence[Sequence[Record]], status: RunStatus) -> list[float]:
    """Return how much of each attempt had to be done again, or came to nothing.

    A later attempt says from which step it went on: what was done after that step is lost. A stage
    that does not say begins anew. All of a run that has failed is lost until it goes on.
    """
    lasted = [(own[-1].time_ms - own[0].time_ms) / 1000 for own in attempts]
    if status is RunStatus.FAILED:
        return lasted
    lost: list[float] = []
    for place, own in enumerate(attempts):
        later = [record for more in attempts[place + 1 :] for record in more]
        if not later:
            lost.append(0.0)
            continue
        resumed = next((r.body["step"] for r in later if r.kind == "resume"), None)
        if resumed is None:
            trains = any(record.kind == "resume" for record in own)
            lost.append(0.0 if trains else lasted[place])
            continue
        kept = [r.time_ms for r in own if _trained_step(r) is not None
                and 0 < (_trained_step(r) or 0) <= resumed]  # fmt: skip
        until = max(kept, default=own[0].time_ms)
        lost.append((own[-1].time_ms - until) / 1000)
    return lost


def _trained_step(record: Record) -> int | None:
    """Return the optimiser step of a record that has one; samples of machines have none."""
    if record.kind == "witness":
        return int(record.body["step"])
    if record.kind != "metrics":
        return None
    if all(name.startswith(SYSTEM_PREFIX) for name in record.body["values"]):
        return None
    return int(record.body["step"])


def _tags(records: Iterable[Record]) -> dict[str, str]:
    tags: dict[str, str] = {}
    for record in records:
        if record.kind == "tags":
            tags |= {name: str(value) for name, value in record.body["values"].items()}
    return tags


def _number(text: str | None) -> float | None:
    return float(text) if text is not None and re.fullmatch(r"\d+(\.\d+)?", text) else None
