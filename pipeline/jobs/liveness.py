"""Whether a run goes on, from its journal and the processes of this machine. Reads only."""

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from pipeline.jobs.journal import Record

SILENCE_MS = 120_000
"""A run on another machine that has written nothing for so long is taken for dead."""

_TAIL_BYTES, _LAST_LINES = 65536, 3
"""What `is_under_way` reads of a file's end; after its last record a journal notes that it is
flushed."""


def find_status(
    records: list[Record], is_alive: Callable[[Record], bool] | None = None
) -> tuple[str, int | None, str]:
    """Decide from evidence what became of a run: (status, end in ms or None, reason).

    The last attempt counts. With an end record: what it says. Without one: RUNNING as long as its
    process lives (on another machine: as long as it writes); else KILLED at its last line, for
    nothing but a kill or the loss of the machine keeps a run from writing its end.
    """
    last = [record for record in records if record.attempt == records[-1].attempt]
    ends = [record for record in last if record.kind == "end"]
    if ends:
        return ends[-1].body["status"], ends[-1].time_ms, ends[-1].body["message"]
    if (is_alive or _is_alive)(last[0]) or _writes_elsewhere(last):
        return "RUNNING", None, ""
    return "KILLED", last[-1].time_ms, "ended without a word: killed, or its machine was lost"


def is_under_way(journal: Path) -> bool:
    """Say whether the last attempt at a run goes on; reads only both ends of its file."""
    newest = max(journal.glob("attempt-*.jsonl"), default=None)
    if newest is None:
        return False
    with newest.open("rb") as file:
        first = file.readline()
        file.seek(max(0, newest.stat().st_size - _TAIL_BYTES))
        last = file.read().splitlines()
    if any(_parsed(line).get("kind") == "end" for line in last[-_LAST_LINES:]):
        return False
    begin = _parsed(first)
    if not {"t", "kind"} <= begin.keys():
        return False  # killed before its first line was whole
    record = Record(0, 0, begin.pop("kind"), begin.pop("t"), begin)
    if record.body.get("host") == socket.gethostname():
        return _is_alive(record)
    return time.time() - newest.stat().st_mtime < SILENCE_MS / 1000


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
