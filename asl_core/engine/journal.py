"""The journal of a stage run: what it measured, as append-only JSON lines with own timestamps.

A run writes here and nowhere else; whoever tracks runs reads these files later
(pipeline/jobs/journal.py). Each attempt (a start or a restart after an interruption) has a file of
its own, `attempt-000.jsonl`, ..., so that nobody appends to a line that a crash has torn. Standard
library only.
"""

import contextlib
import dataclasses
import json
import math
import os
import re
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from asl_core.engine.witness import Circumstances, TensorMark

SCHEMA_VERSION = 1
SUCCEEDED, FAILED, INTERRUPTED = "SUCCEEDED", "FAILED", "INTERRUPTED"
FINAL_STATUSES = (SUCCEEDED, FAILED, INTERRUPTED)
"""How an attempt ends. An interrupted run goes on where it stopped when it is started again."""

# Sampled on the clock and not on the optimiser's steps: a resume does not supersede them.
SYSTEM_PREFIX = "system/"

_ATTEMPT = re.compile(r"attempt-(\d{3,})\.jsonl")
_USER_IN_URL = re.compile(r"(?<=://)[^/\s]+@")
_SECRET_IN_URL = re.compile(
    r"([?&](?:password|passwd|token|api_?key|secret)=)[^&\s]+", re.IGNORECASE
)
_SECRET_NAME = re.compile(
    r"password|passwd|secret|credential|api_?key|(access|auth)_?token", re.IGNORECASE
)
_SECRET_VARIABLE = re.compile(r"(PASSWORD|SECRET|SECRET_(ACCESS_)?KEY|API_KEY|TOKEN)$")


class Journal:
    """Writes one attempt's records; may be used from several threads."""

    def __init__(self, path: Path, began_ms: int):
        """Use `Journal.open`."""
        self.path = path
        self.began_ms = began_ms
        self._lock = threading.Lock()
        self._file = path.open("a", encoding="utf-8", buffering=1)

    @classmethod
    def open(
        cls, folder: Path, *, start_step: int | None = None, began_ms: int | None = None
    ) -> "Journal":
        """Begin a new attempt in `folder`.

        Args:
            folder: The run's journal folder; made if missing.
            start_step: When given, the same as calling `resume(start_step)` at once.
            began_ms: When the run began, where another journal says so; else this one does.
        """
        folder.mkdir(parents=True, exist_ok=True)
        path = _claim_next_file(folder)
        journal = cls(path, began_ms or first_time(folder) or _now_ms())
        journal._write("open", pid=os.getpid(), host=socket.gethostname())
        if start_step is not None:
            journal.resume(start_step)
        return journal

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Record numbers by name at an optimiser step."""
        self._write("metrics", step=int(step), values={k: _encode(v) for k, v in values.items()})

    def params(self, values: Mapping[str, object]) -> None:
        """Record settings of the run; the first value of a name counts."""
        self._write("params", values={k: _clean(k, v) for k, v in values.items()})

    def tags(self, values: Mapping[str, str]) -> None:
        """Record facts about the run; the last value of a name counts."""
        self._write("tags", values={k: _clean(k, v) for k, v in values.items()})

    def dataset(self, name: str, digest: str, source: str, context: str) -> None:
        """Record a dataset that the run read, `context` being train or test."""
        source = redact(source)
        self._write("dataset", name=name, digest=digest, source=source, context=context)

    def artifact(self, path: str) -> None:
        """Record a file for people to look at; `path` is relative to the stage's out folder."""
        self._write("artifact", path=path)

    def resume(self, step: int, total_steps: int | None = None) -> None:
        """Declare that training goes on from `step`: later points of earlier attempts are void.

        Args:
            step: Optimiser steps done.
            total_steps: How many there are to do in all, where that is known.
        """
        total = {} if total_steps is None else {"total_steps": int(total_steps)}
        self._write("resume", step=int(step), **total)

    def circumstances(self, circumstances: Circumstances) -> None:
        """Record where a run's first steps are going to be computed."""
        self._write("circumstances", **dataclasses.asdict(circumstances))

    def witness(
        self, step: int, losses: Mapping[int, float], tensors: Mapping[str, TensorMark]
    ) -> None:
        """Record the losses of steps, and marks of the model's tensors; `read_witness` reads them.

        Args:
            step: Optimiser steps done.
            losses: By step, those since the last such record.
            tensors: By name, as they are after `step`; none where only losses are to be kept.
        """
        self._write(
            "witness",
            step=int(step),
            losses={str(number): _encode(loss) for number, loss in losses.items()},
            tensors={
                name: {
                    "sha256": mark.sha256,
                    "dtype": mark.dtype,
                    "shape": [*mark.shape],
                    "norm": _encode(mark.norm),
                    "values": [_encode(value) for value in mark.values],
                }
                for name, mark in tensors.items()
            },
        )

    def sync(self) -> None:
        """Make everything written so far survive a crash of the machine."""
        self._write("sync")
        with self._lock:
            os.fsync(self._file.fileno())

    def restore(self) -> bool:
        """Write the file anew where somebody has deleted it; return whether it was missing.

        What was written is still there as long as the file is open.
        """
        with self._lock:
            if self.path.exists():
                return False
            content = Path(f"/proc/self/fd/{self._file.fileno()}").read_bytes()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_bytes(content)
            self._file.close()
            self._file = self.path.open("a", encoding="utf-8", buffering=1)
            return True

    def end(self, status: str, message: str = "") -> None:
        """Record how the attempt ended.

        Raises:
            ValueError: The status is none of SUCCEEDED, FAILED and INTERRUPTED.
        """
        if status not in FINAL_STATUSES:
            raise ValueError(f"status {status!r} is none of {', '.join(FINAL_STATUSES)}")
        self._write("end", status=status, message=redact(message))
        self.sync()

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        with self._lock:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _write(self, kind: str, **body: object) -> None:
        with self._lock:
            if self._file.closed:
                raise ValueError(f"the journal {self.path.name} is closed")
            # Time is taken inside the lock: lines of a file are in the order of their times.
            record = {"v": SCHEMA_VERSION, "kind": kind, "t": _now_ms(), **body}
            self._file.write(json.dumps(record, allow_nan=False) + "\n")


def redact(text: str) -> str:
    """Take passwords out: user information in URLs, and what the environment holds."""
    found = {v for k, v in os.environ.items() if _SECRET_VARIABLE.search(k) and len(v) >= 6}
    for secret in sorted(found, key=len, reverse=True):
        text = text.replace(secret, "***")
    return _SECRET_IN_URL.sub(r"\1***", _USER_IN_URL.sub("***@", text))


def attempt_files(folder: Path) -> list[tuple[int, Path]]:
    """Return a journal's files with the numbers of their attempts, the first attempt first."""
    found = [(_ATTEMPT.fullmatch(path.name), path) for path in folder.glob("attempt-*.jsonl")]
    return sorted((int(match[1]), path) for match, path in found if match)


def _claim_next_file(folder: Path) -> Path:
    number = max((number for number, _ in attempt_files(folder)), default=-1) + 1
    while True:
        path = folder / f"attempt-{number:03d}.jsonl"
        try:
            path.touch(exist_ok=False)
        except FileExistsError:
            number += 1
        else:
            return path


def first_time(folder: Path) -> int | None:
    """Return when a journal's first attempt began, in milliseconds since 1970."""
    for _, path in attempt_files(folder):
        with path.open("rb") as file:
            line = file.readline()
        with contextlib.suppress(ValueError, KeyError, TypeError):  # empty, or torn by a crash
            return int(json.loads(line)["t"])
    return None


def _clean(name: str, value: object) -> object:
    """Return a setting as JSON has it, without what must stay secret."""
    if _SECRET_NAME.search(name):
        return "***"
    if value is None or isinstance(value, bool | int):
        return value
    return _encode(value) if isinstance(value, float) else redact(str(value))


def _encode(value: Any) -> float | str:
    """Return a float, or the name of one that JSON has no number for."""
    number = float(value)
    return number if math.isfinite(number) else str(number)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
