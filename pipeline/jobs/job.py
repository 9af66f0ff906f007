"""job.json and attempts/NNN.json: what was handed to the scheduler, when, as what."""

import dataclasses
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.config.schedulers import DEFAULT
from pipeline.jobs.folder import PROVISIONAL, JobFolder
from pipeline.schedulers.port import ARRAY_COMMENT
from pipeline.writing import write_json

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a job is to make. Written once, at its first submission.

    Attributes:
        stage: `pretrain`.
        key: `asl`.
        name: `pretrain@asl`, as dvc.yaml has it.
        suite: Folder of the suite, relative to the root; `.` for the demo.
        fingerprint: DVC's run-cache key, or `p-` and the recipe.
        recipe: Identifies command, code, parameters and, through the recipes of the runs that
            make them, inputs: known before any result is.
        document: What DVC would file the result under: cmd, deps, params, outs; without the
            hashes of the outs, and of the deps that do not exist yet.
        submitted: Seconds since 1970.
    """

    stage: str
    key: str
    name: str
    suite: str
    fingerprint: str
    recipe: str
    document: dict[str, Any]
    submitted: float
    host: str
    user: str
    schema: int = SCHEMA


@dataclass(frozen=True, kw_only=True)
class Terms:
    """Under which an attempt was submitted; a later one may have others and makes the same.

    Attributes:
        snapshot: Digest of the frozen code.
        resources: Of the stage itself (device, threads, ...).
        asked: What was asked of the scheduler.
        upstream: Path of an input that another stage makes -> fingerprint of that run.
        data_root: Where relative paths of datasets lead.
        external: Paths that the stage reads and DVC does not track -> {md5, size, nfiles}.
        code: Tags that name the commit.
        force: Run although there is a result.
        scheduler: Who was asked, as cluster.yaml names it.
        avoid: Node that it must not get -> why.
        notes: What else was decided from earlier attempts, for people.
    """

    snapshot: str
    resources: dict[str, Any]
    asked: dict[str, Any]
    upstream: dict[str, str]
    data_root: str
    external: dict[str, dict[str, Any]] = field(default_factory=dict)
    code: dict[str, str] = field(default_factory=dict)
    force: bool = False
    scheduler: str = DEFAULT
    avoid: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One time that a job was handed over. Written before that, its id added afterwards.

    Attributes:
        number: From 1.
        token: Random; it is in the job's comment, so that a job can be found in the queue
            although nobody heard the scheduler's answer.
        job_id: The scheduler's; None until it answered.
        submitted: Seconds since 1970.
        terms: Code, resources, inputs.
        restarts: How often the run had been interrupted before this attempt began.
        after: Ids of the jobs that it waits for.
        refused: Why the scheduler did not take it; None if it did, or if that is not known.
        retry: How often in a row it was submitted again without anybody being asked.
        drop: It ends where a job in `after` does not succeed, instead of waiting for ever.
    """

    number: int
    token: str
    job_id: str | None = None
    submitted: float
    host: str
    user: str
    terms: Terms
    restarts: int = 0
    after: tuple[str, ...] = ()
    refused: str | None = None
    retry: int = 0
    drop: bool = False


def new_token() -> str:
    """Return a token that no other attempt has."""
    return secrets.token_hex(6)


def comment_of(fingerprint: str, token: str) -> str:
    """Return the comment by which an attempt is found in the queue."""
    return f"asl:{fingerprint.removeprefix(PROVISIONAL)[:8]}:{token}"


def is_of_asl_pipe(comment: str) -> bool:
    """Say whether a job in the queue was submitted by asl-pipe, for whatever project."""
    return token_in(comment) is not None or comment.startswith(ARRAY_COMMENT)


def token_in(comment: str) -> str | None:
    """Return the token in a comment; None if it is not one of ours."""
    parts = comment.split(":")
    return parts[2] if len(parts) == 3 and parts[0] == "asl" else None


def write_job(paths: JobFolder, job: Job) -> None:
    """Write job.json; parameters keep the order in which DVC will write them."""
    write_json(paths.job, dataclasses.asdict(job), sort_keys=False)


def read_job(paths: JobFolder) -> Job | None:
    """Return the job, None where there is none or it is not readable."""
    return _read(paths.job, Job)


def write_attempt(paths: JobFolder, attempt: Attempt) -> None:
    """Write or replace an attempt's file."""
    paths.attempts.mkdir(parents=True, exist_ok=True)
    write_json(paths.attempts / f"{attempt.number:03d}.json", dataclasses.asdict(attempt))


def read_attempts(paths: JobFolder) -> list[Attempt]:
    """Return all attempts, the first one first."""
    found = [_read(path, Attempt) for path in paths.attempts.glob("[0-9]*.json")]
    attempts = [attempt for attempt in found if attempt is not None]
    return sorted(attempts, key=lambda attempt: attempt.number)


def newer_attempt(paths: JobFolder, number: int) -> Attempt | None:
    """Return the newest attempt where that is a newer one, None if the scheduler refused it."""
    newest = next(reversed(read_attempts(paths)), None)
    is_newer = newest is not None and newest.number > number and not newest.refused
    return newest if is_newer else None


def take_number(paths: JobFolder) -> int:
    """Reserve the next attempt's number: of two that ask at once each gets its own.

    Its file is there from now on, and no attempt until it is written.
    """
    paths.attempts.mkdir(parents=True, exist_ok=True)
    taken = (int(path.stem) for path in paths.attempts.glob("[0-9]*.json") if path.stem.isdigit())
    number = max(taken, default=0) + 1
    while True:
        try:
            (paths.attempts / f"{number:03d}.json").open("x").close()
        except FileExistsError:  # made since
            number += 1
        else:
            return number


def _read(path: Path, kind: type[Any]) -> Any:
    try:
        return _build(kind, json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _build(kind: type[Any], raw: Mapping[str, Any]) -> Any:
    """Build a record; what a newer version has added is left out."""
    known = {f.name for f in dataclasses.fields(kind)}
    values = {key: value for key, value in raw.items() if key in known}
    if kind is Attempt:
        terms = {**values["terms"], "notes": tuple(values["terms"].get("notes", ()))}
        values["terms"] = _build(Terms, terms)
        values["after"] = tuple(values.get("after", ()))
    return kind(**values)
