"""starts/AAA-RR.json: each start of a job, where it was and how it ended.

state.json is of the newest start alone; what a node or too little memory did to earlier ones is
kept here. A start's own process writes how it ended, if it can; what became of one that died
without a word is added by whoever asks the scheduler.
"""

import contextlib
import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from pipeline.jobs.folder import JobFolder
from pipeline.writing import write_json


class Cause(StrEnum):
    """Why a start ended."""

    SUCCEEDED = "succeeded"
    STOPPED = "stopped"
    """By a signal: a time limit, a preemption, `cancel`."""
    INPUT = "input"
    """What it was given is wrong, or it must not go on; another start would end the same way."""
    CRASHED = "crashed"
    """An error that nobody expected."""
    MEMORY = "memory"
    NODE = "node"
    """The scheduler says that the node failed."""
    DIED = "died"
    """Without a word, and nobody ordered it."""
    TIME = "time"
    CANCELLED = "cancelled"
    PREEMPTED = "preempted"
    REQUEUED = "requeued"
    """It died, and the scheduler started the job again by itself and does not say why."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """One start of a job.

    Attributes:
        attempt: Number of the attempt.
        restart: How often the scheduler had requeued it.
        job_id: The scheduler's.
        nodes: As the scheduler names them: `n1`, `n[1-2]`.
        snapshot: Digest of the code.
        memory: What was asked for on each node; None: the scheduler's default.
        began: Seconds since 1970.
        ended: Likewise; None where it died.
        signals: That it had got when it last said something.
        cause: Why it ended; None while it runs, or where nobody has asked yet.
        asked: The scheduler was asked for the cause.
    """

    attempt: int
    restart: int
    job_id: str | None
    nodes: str
    snapshot: str
    memory: str | None = None
    began: float
    ended: float | None = None
    signals: tuple[str, ...] = ()
    cause: Cause | None = None
    asked: bool = False


def write_start(paths: JobFolder, start: Start) -> None:
    """Write or replace a start's file; on a full disk, nothing: the run is worth more."""
    with contextlib.suppress(OSError):
        paths.starts.mkdir(parents=True, exist_ok=True)
        name = f"{start.attempt:03d}-{start.restart:02d}.json"
        write_json(paths.starts / name, dataclasses.asdict(start))


def read_starts(paths: JobFolder) -> list[Start]:
    """Return all starts of a job, the first one first."""
    found: list[Start] = []
    for path in paths.starts.glob("[0-9]*-[0-9]*.json"):
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
            raw = json.loads(path.read_text(encoding="utf-8"))
            known = {field.name for field in dataclasses.fields(Start)}
            values = {name: value for name, value in raw.items() if name in known}
            values["signals"] = tuple(values.get("signals", ()))
            values["cause"] = None if values.get("cause") is None else Cause(values["cause"])
            found.append(Start(**values))
    return sorted(found, key=lambda start: (start.attempt, start.restart))


def last_of(starts: Sequence[Start], attempt: int) -> Start | None:
    """Return the newest start of an attempt; None where it never began."""
    return next((start for start in reversed(starts) if start.attempt == attempt), None)
