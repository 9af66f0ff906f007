"""Whether a run goes on, from its journal and the processes of this machine. Reads only."""

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from asl_core.errors import InputError
from pipeline.jobs.journal import Record
from pipeline.jobs.state import RunStatus

SILENCE_MS = 120_000
"""A run on another machine that has written nothing for so long is taken for dead."""

_TAIL_BYTES, _LAST_LINES = 65536, 3
"""What is read of a file's end; after its last record a journal notes that it is
flushed."""


def find_status(
    records: list[Record], is_alive: Callable[[Record], bool] | None = None
) -> tuple[RunStatus, int | None, str]:
    """Decide from evidence what became of a run: (status, end in ms or None, reason).

    The last attempt counts. With an end record: what it says. Without one: RUNNING as long as its
    process lives (on another machine: as long as it writes); else INTERRUPTED at its last line,
    for nothing but a kill or the loss of the machine keeps a run from writing its end.

    Raises:
        InputError: Another version of this program ended it, with a word that is not known here.
    """
    last = [record for record in records if record.attempt == records[-1].attempt]
    ends = [record for record in last if record.kind == "end"]
    if ends:
        end = ends[-1]
        return _status(end.body["status"]), end.time_ms, end.body["message"]
    if (is_alive or _is_alive)(last[0]) or _writes_elsewhere(last):
        return RunStatus.RUNNING, None, ""
    why = "ended without a final record: killed, or its machine was lost"
    return RunStatus.INTERRUPTED, last[-1].time_ms, why


def has_succeeded(journal: Path) -> bool:
    """Say whether the last attempt at a run says that it succeeded; reads only its file's end."""
    newest = max(journal.glob("attempt-*.jsonl"), default=None)
    return newest is not None and _end_of(newest).get("status") == RunStatus.SUCCEEDED


def is_under_way(journal: Path) -> bool:
    """Say whether the last attempt at a run goes on; reads only both ends of its file."""
    newest = max(journal.glob("attempt-*.jsonl"), default=None)
    if newest is None or _end_of(newest):
        return False
    with newest.open("rb") as file:
        first = file.readline()
    begin = _parsed(first)
    if not {"t", "kind"} <= begin.keys():
        return False  # killed before its first line was whole
    record = Record(0, 0, begin.pop("kind"), begin.pop("t"), begin)
    if record.body.get("host") == socket.gethostname():
        return _is_alive(record)
    return time.time() - newest.stat().st_mtime < SILENCE_MS / 1000


def _status(word: str) -> RunStatus:
    try:
        return RunStatus(word)
    except ValueError:
        raise InputError(
            f"its journal ends with {word!r}, which another version of this program wrote; make "
            "the run anew, or delete it with asl-pipe gc"
        ) from None


def _end_of(attempt: Path) -> dict[str, Any]:
    """Return the record with which an attempt ended, nothing where there is none."""
    with attempt.open("rb") as file:
        file.seek(max(0, attempt.stat().st_size - _TAIL_BYTES))
        last = file.read().splitlines()[-_LAST_LINES:]
    return next((said for line in last if (said := _parsed(line)).get("kind") == "end"), {})


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        content = json.loads(line)
    except ValueError:  # torn
        return {}
    return content if isinstance(content, dict) else {}


def _is_alive(begin: Record) -> bool:
    """Say whether the process that began an attempt on this machine is still the same one."""
    if begin.body.get("host") != socket.gethostname():
        return False
    try:
        process = psutil.Process(begin.body["pid"])
        created_ms = process.create_time() * 1000
        if process.status() == psutil.STATUS_ZOMBIE:  # killed, and nobody has asked for its end
            return False
    except psutil.NoSuchProcess:
        return False
    return created_ms <= begin.time_ms + 1000  # a younger process has inherited the number


def _writes_elsewhere(attempt: list[Record]) -> bool:
    if attempt[0].body.get("host") == socket.gethostname():
        return False
    return time.time() * 1000 - attempt[-1].time_ms < SILENCE_MS
