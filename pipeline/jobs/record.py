"""record.json of a stage run: what it was and how it ended. Writes that one file."""

import dataclasses
import json
import os
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


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


def write_json(path: Path, content: Any, *, sort_keys: bool = True) -> None:
    """Write JSON to a sibling, flush it to the disk, and rename it into place.

    The sibling is this process's own: of two writers at once one wins, whole.
    """
    text = json.dumps(content, indent=2, sort_keys=sort_keys)
    write_bytes(path, f"{text}\n".encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file to a sibling, flush it to the disk, and rename it into place."""
    temporary = path.with_name(f"{path.name}.{socket.gethostname()}-{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_record(path: Path, record: JobRecord) -> None:
    """Replace the record."""
    write_json(path, dataclasses.asdict(record))


def read_record(path: Path) -> JobRecord | None:
    """Return the record, None where there is none or it is not readable."""
    try:
        return JobRecord(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
