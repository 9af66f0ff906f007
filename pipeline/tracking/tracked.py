"""What a journal says about a run, in the form in which it is shown: pure, no store."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import TrackingError
from pipeline.jobs.folder import NODE_PREFIX
from pipeline.jobs.journal import (
    Points,
    Record,
    is_result,
    last_losses,
    points_of,
    read_records,
)
from pipeline.jobs.liveness import find_status
from pipeline.jobs.state import RunStatus
from pipeline.jobs.usage import cost_of_records, sums_of
from pipeline.results.dvc_experiment import ASIDE, NAME
from pipeline.stages.table import MEASURED, PRETRAIN, STAGES

UNKNOWN = "unknown"
"""What a journal says of an encoder that no metrics file is beside."""

_UNUSUAL = re.compile(r"[^\w\-. :/]", re.ASCII)

Point = tuple[str, int, str, int]
"""Key, step, value as text (so that nan equals nan), time in milliseconds."""


@dataclass(frozen=True)
class TrackedRun:
    """One stage run as people see it.

    Attributes:
        tags: By name; what the project says has the prefix `asl.`.
        params: Hyperparameters by name, as text.
        datasets: Bodies of the journal's dataset records: name, digest, source, context.
        artifacts: Paths relative to the stage's output folder, in order, each once.
        status: What became of it.
        message: Why it ended, if it did not succeed.
        start_ms: When the first attempt began, in milliseconds since 1970.
        end_ms: When the last attempt ended, None while it runs.
        records: The whole journal.
        nodes: Journals of other machines, by the names of their folders: samples of them.
    """

    tags: Mapping[str, str]
    params: Mapping[str, str]
    datasets: list[Mapping[str, str]]
    artifacts: list[str]
    status: RunStatus
    message: str
    start_ms: int
    end_ms: int | None
    records: list[Record]
    nodes: Mapping[str, list[Record]] = field(default_factory=dict)

    @property
    def stage(self) -> str:
        return self.tags["asl.stage"]

    @property
    def key(self) -> str:
        return self.tags["asl.key"]

    @property
    def suite(self) -> str:
        return self.tags["asl.suite"]

    @property
    def fingerprint(self) -> str:
        return self.tags["asl.fingerprint"]

    @property
    def experiment(self) -> str | None:
        """Name of the experiment it belongs to."""
        return self.key if STAGES.get(self.stage) in MEASURED else None

    @property
    def encoder(self) -> str | None:
        """Fingerprint of the run that made the encoder it is about, None where nobody knows."""
        if self.stage == PRETRAIN.name:
            return self.fingerprint
        said = self.tags.get("asl.encoder_fingerprint", UNKNOWN)
        return None if said == UNKNOWN else said

    @property
    def aside(self) -> str | None:
        """Name of the DVC experiment that it was made for outside the workspace."""
        return self.tags.get(NAME) if self.tags.get(ASIDE) == "true" else None

    @property
    def lines(self) -> dict[str, int]:
        """Number of lines of each attempt's file, those of other machines included."""
        counts: dict[str, int] = {}
        for name, record in self._all():
            counts[name] = record.line + 1
        return counts

    def milestones(self, done: Mapping[str, int], parts: int) -> Iterator[dict[str, int]]:
        """Yield lines of each file on the way from those that are done to all, so many times."""
        for part in range(1, parts + 1):
            yield {
                name: (before := min(done.get(name, 0), count)) + (count - before) * part // parts
                for name, count in self.lines.items()
            }

    def points(self, lines: Mapping[str, int] | None = None) -> set[Point]:
        """Return what counts of the journal, or of its first lines."""
        records = [
            record
            for name, record in self._all()
            if lines is None or record.line < lines.get(name, 0)
        ]
        found = {
            (_shown_name(key), step, repr(value), time_ms)
            for key, values in points_of(records).items()
            for step, value, time_ms in values
        }
        # it is final only at the end: what a tracker has been told cannot be taken back
        ended = self.status is RunStatus.SUCCEEDED and self.end_ms is not None
        if ended and (lines is None or all(lines.get(n, 0) >= c for n, c in self.lines.items())):
            found |= {(name, 0, repr(value), self.end_ms or 0) for name, value in self.cost.items()}
        return found

    @property
    def cost(self) -> dict[str, float]:
        """What the run took, of what is known by its journal: `cost/gpu_hours`."""
        others = [record for records in self.nodes.values() for record in records]
        starts = cost_of_records(self.records, others, self.status)
        return sums_of(starts)

    def _all(self) -> Iterator[tuple[str, Record]]:
        """Yield the name of its file with each record."""
        for record in self.records:
            yield str(record.attempt), record
        for node, records in self.nodes.items():
            for record in records:
                yield f"{node}/{record.attempt}", record

    def voided(self) -> set[Point]:
        """Return what was written and does not count any more."""
        written = {
            (_shown_name(key), record.body["step"], repr(value), record.time_ms)
            for _, record in self._all()
            if record.kind == "metrics"
            for key, value in record.body["values"].items()
        }
        return written - self.points()

    def results(self) -> set[Point]:
        """Return what the stage has found out, with the ends of curves that belong to it."""
        ends = {
            (_shown_name(key), step, repr(value), time_ms)
            for key, (step, value, time_ms) in last_losses(points_of(self.records)).items()
        }
        return ends | {point for point in self.points() if is_result(point[0])}

    def curves(self) -> Points:
        """Return the step metrics of training: {`loss`: [(step, value, time_ms), ...]}."""
        prefix = f"{self.stage}/"
        return {
            key.removeprefix(prefix): values
            for key, values in points_of(self.records).items()
            if key.startswith(prefix) and len(values) > 1
        }


def read_tracked_run(journal: Path) -> TrackedRun:
    """Read a run from its journal folder.

    Raises:
        TrackingError: The journal is empty or does not say which run it is of.
        InputError: A line of it is damaged, or of another version.
    """
    records = read_records(journal)
    tags = {
        (name if "." in name else f"asl.{name}"): _text(value)
        for record in records
        if record.kind == "tags"
        for name, value in record.body["values"].items()
    }
    missing = {"asl.stage", "asl.key", "asl.suite", "asl.fingerprint"} - tags.keys()
    if missing:
        raise TrackingError(
            f"{journal} does not say which run it is of ({', '.join(sorted(missing))}); "
            "its beginning is missing, nothing to show"
        )
    params: dict[str, str] = {}
    for record in records:
        if record.kind == "params":
            params = {k: _text(v) for k, v in record.body["values"].items()} | params
    status, end_ms, message = find_status(records)
    tags["asl.attempts"] = str(len({record.attempt for record in records}))
    return TrackedRun(
        tags=tags,
        params=params,
        datasets=[record.body for record in records if record.kind == "dataset"],
        artifacts=list(dict.fromkeys(r.body["path"] for r in records if r.kind == "artifact")),
        status=status,
        message=message,
        start_ms=records[0].time_ms,
        end_ms=end_ms,
        records=records,
        nodes={
            folder.name: read_records(folder) for folder in sorted(journal.glob(f"{NODE_PREFIX}*"))
        },
    )


def _shown_name(metric: str) -> str:
    """Return a metric's name as trackers take it: the same, of letters that they know."""
    return _UNUSUAL.sub("_", metric)


def _text(value: object) -> str:
    """Return text that fits the limits of trackers for params and tags."""
    return str(value)[:5000]
