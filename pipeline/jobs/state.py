"""state.json: what a job says of itself. Only the job writes it."""

import dataclasses
import json
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from asl_core.engine import journal
from pipeline.jobs.folder import JobFolder
from pipeline.writing import write_json

HEARTBEAT_S = 10.0
ERROR_CHARACTERS = 6000
"""Of a traceback's tail that is kept."""


class RunStatus(StrEnum):
    """How far a stage run is: a job's in its own words, any run's by its journal."""

    RUNNING = "RUNNING"
    SUCCEEDED = journal.SUCCEEDED
    FAILED = journal.FAILED
    INTERRUPTED = journal.INTERRUPTED
    STOPPED = "STOPPED"
    """Before its end, on purpose: see pipeline/jobs/halving.py. Of jobs alone; their journals say
    INTERRUPTED, for they can go on."""


@dataclass(frozen=True, kw_only=True)
class JobState:
    """The job's own account; times in seconds since 1970.

    Attributes:
        attempt: Number and token of the attempt that writes; what an older one said is void.
        job_id: The scheduler's.
        restarts: How often the run was interrupted so far.
        heartbeat: When this was last written.
        fingerprint: Key under which the result is filed; None until it is known.
        step: Optimiser steps done; None for a stage that does not train.
        nodes: As the scheduler names them.
        gpus: UUIDs.
        stopped_by: Signals that an interrupted run got.
        error: Tail of the traceback; of what was stopped, at which number.
        manifest: Path of each output -> {md5, size, nfiles}; there once it has succeeded.
    """

    status: RunStatus
    attempt: int
    token: str
    job_id: str | None = None
    restarts: int = 0
    heartbeat: float
    started: float
    ended: float | None = None
    fingerprint: str | None = None
    step: int | None = None
    total_steps: int | None = None
    loss: float | None = None
    images_per_s: float | None = None
    seconds_left: float | None = None
    nodes: str = ""
    gpus: tuple[str, ...] = ()
    driver: str | None = None
    pid: int | None = None
    exit_code: int | None = None
    stopped_by: tuple[str, ...] = ()
    error: str | None = None
    manifest: dict[str, dict[str, Any]] = field(default_factory=dict)


def write_state(paths: JobFolder, state: JobState) -> None:
    """Replace state.json."""
    write_json(paths.state, dataclasses.asdict(state))


def read_state(paths: JobFolder) -> JobState | None:
    """Return what the job said last, None where it has not begun or cannot be read."""
    try:
        raw = json.loads(paths.state.read_text(encoding="utf-8"))
        known = {f.name for f in dataclasses.fields(JobState)}
        values = {key: value for key, value in raw.items() if key in known}
        for name in ("gpus", "stopped_by"):
            values[name] = tuple(values.get(name, ()))
        values["status"] = RunStatus(values["status"])
        return JobState(**values)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
