"""record.json of a stage run: what it was and how it ended. Writes that one file."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.writing import write_json


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """What stays of a stage run in its scratch folder once the outputs are published.

    Attributes:
        started: Seconds since 1970; `ended` likewise, absent while the run is under way.
        status: RUNNING, FINISHED, FAILED or KILLED.
        peak_memory_gib: Largest resident size of the process or of its largest child.
    """

    stage: str
    key: str
    suite: str
    fingerprint: str
    status: str
    started: float
    ended: float | None = None
    peak_memory_gib: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)


def write_record(path: Path, record: JobRecord) -> None:
    """Replace the record."""
    write_json(path, dataclasses.asdict(record))


def read_record(path: Path) -> JobRecord | None:
    """Return the record, None where there is none or it is not readable."""
    try:
        return JobRecord(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
