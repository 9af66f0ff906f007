"""What a rehearsal found: kept in a file, and told."""

import dataclasses
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from pipeline.project import Project
from pipeline.rehearsal.projection import NOTHING, Span
from pipeline.writing import write_json

_CENTURIES = 1e10
"""Seconds: later than this no date is worth telling."""


@dataclass(frozen=True, kw_only=True)
class StageEstimate:
    """One kind of run of a suite: those that differ by their seed alone are one kind.

    Attributes:
        names: The runs, as dvc.yaml has them.
        batch: Images of a step and process that were tried.
        fits: Whether as many as cluster.yaml says went through; None where nothing is trained.
        micro_batch: The most that fits, where that is less.
        step_s: Median step, scaled to the true batch.
        waiting: Share of a step that is spent waiting for data.
        device, device_bytes, peak_device_bytes, peak_host_bytes: See `Measured`.
        checkpoint_bytes, checkpoint_s: Of one checkpoint.
        stored_bytes: Of a run's outputs.
        each: How long one run takes; None where the trial failed.
        gpus: That a run occupies.
        problem: The first, in words.
    """

    names: tuple[str, ...]
    batch: int = 0
    fits: bool | None = None
    micro_batch: int | None = None
    step_s: float | None = None
    waiting: float | None = None
    device: str = "cpu"
    device_bytes: int | None = None
    peak_device_bytes: int | None = None
    peak_host_bytes: int = 0
    checkpoint_bytes: int = 0
    checkpoint_s: float = 0.0
    stored_bytes: int = 0
    each: Span | None = None
    gpus: int = 0
    problem: str | None = None

    @property
    def total(self) -> Span:
        """All runs of this kind, one after the other."""
        return NOTHING if self.each is None else self.each.times(len(self.names))


@dataclass(frozen=True, kw_only=True)
class RehearsalReport:
    """All of a suite.

    Attributes:
        suite: Its name.
        made: When, in ISO's form, UTC.
        estimates: In the order of the DAG.
        settings: What the runs were when they were tried: `settings_of`.
        batch: Images of a step and process, where they were asked for.
    """

    suite: str
    made: str
    estimates: tuple[StageEstimate, ...]
    settings: Mapping[str, str] = field(default_factory=dict)
    batch: int | None = None

    @property
    def total(self) -> Span:
        """Everything, one after the other."""
        return sum((each.total for each in self.estimates), NOTHING)

    @property
    def gpu_hours(self) -> Span:
        """Hours of a GPU."""
        spans = (each.total.times(each.gpus / 3600) for each in self.estimates)
        return sum(spans, NOTHING)

    @property
    def stored_bytes(self) -> int:
        """Of all outputs, and of the two checkpoints that a run keeps while it lasts."""
        outputs = sum(each.stored_bytes * len(each.names) for each in self.estimates)
        return outputs + 2 * max((each.checkpoint_bytes for each in self.estimates), default=0)

    @property
    def problems(self) -> list[str]:
        """What stands against the first of each kind of run."""
        return [f"{each.names[0]}: {each.problem}" for each in self.estimates if each.problem]

    def left(self, runs: Collection[str]) -> "RehearsalReport":
        """Return what it says of some runs alone: those that are not finished."""
        narrowed = (
            dataclasses.replace(each, names=tuple(name for name in each.names if name in runs))
            for each in self.estimates
        )
        return dataclasses.replace(self, estimates=tuple(each for each in narrowed if each.names))

    def unknown(self, settings: Mapping[str, str]) -> list[str]:
        """Return the runs that were not tried, or have other settings now."""
        return [name for name, now in settings.items() if self.settings.get(name) != now]

    def finished(self, now: datetime) -> tuple[datetime, datetime, datetime]:
        """Return when all is done, one run after the other: expected, at best, at worst."""
        span = self.total
        seconds = (min(each, _CENTURIES) for each in (span.expected, span.low, span.high))
        expected, low, high = (now + timedelta(seconds=each) for each in seconds)
        return expected, low, high


def report_file(project: Project) -> Path:
    """Return where the newest rehearsal of a suite is kept."""
    return project.scratch / "rehearsals" / f"{project.name}.json"


def write_report(project: Project, report: RehearsalReport) -> None:
    """Keep a report for `asl-pipe plan`."""
    path = report_file(project)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, asdict(report))


def read_report(project: Project) -> RehearsalReport | None:
    """Return the newest report; None where there is none that can be read."""
    try:
        content = json.loads(report_file(project).read_text(encoding="utf-8"))
        estimates = tuple(_estimate(each) for each in content.pop("estimates"))
        return RehearsalReport(estimates=estimates, **content)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None  # written by another version, or damaged: to be made again


def _estimate(fields: dict[str, Any]) -> StageEstimate:
    each: Any = fields.pop("each")
    names: Any = fields.pop("names")
    span = None
    if each is not None:
        span = Span(*(float(each[name]) for name in ("expected", "low", "high")))
    if not isinstance(names, list):
        raise TypeError("names is no list")
    return StageEstimate(names=tuple(map(str, names)), each=span, **fields)
