"""How far a training run is, from the end of its journal. Reads only, each line once."""

import json
from dataclasses import dataclass, replace
from pathlib import Path


@dataclass(frozen=True)
class Progress:
    """The newest numbers of a run; None for what it has not said."""

    step: int | None = None
    total_steps: int | None = None
    loss: float | None = None
    images_per_s: float | None = None
    seconds_left: float | None = None
    """At the pace of this start."""


class ProgressReader:
    """Follows the newest attempt in a journal folder.

    Args:
        journal: Folder with `attempt-*.jsonl`; need not be there yet.
        stage: `pretrain`, after which its curves are named.
    """

    def __init__(self, journal: Path, stage: str) -> None:
        self.journal = journal
        self._loss, self._pace = f"{stage}/loss", f"{stage}/images_per_s"
        self._file: Path | None = None
        self._offset = 0
        self._progress = Progress()
        self._begin: tuple[int, int] | None = None  # step and milliseconds of the first metrics

    def read(self) -> Progress:
        """Return the newest numbers."""
        newest = max(self.journal.glob("attempt-*.jsonl"), default=None)
        if newest is None:
            return self._progress
        if newest != self._file:
            self._file, self._offset, self._progress = newest, 0, Progress()
            self._begin = None
        with newest.open("rb") as file:
            file.seek(self._offset)
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]  # the last line may be half written
        self._offset += len(whole)
        for line in whole.splitlines():
            self._take(line)
        return self._progress

    def _take(self, line: bytes) -> None:
        try:
            record = json.loads(line)
            kind = record["kind"]
            if kind == "resume":
                total = record.get("total_steps", self._progress.total_steps)
                self._progress = replace(
                    self._progress, step=int(record["step"]), total_steps=total
                )
            elif kind == "metrics" and self._loss in record["values"]:
                values = record["values"]
                self._progress = replace(
                    self._progress,
                    step=int(record["step"]),
                    loss=float(values[self._loss]),
                    images_per_s=float(values.get(self._pace, "nan")),
                    seconds_left=self._seconds_left(int(record["step"]), int(record["t"])),
                )
        except (ValueError, KeyError, TypeError):
            return

    def _seconds_left(self, step: int, now_ms: int) -> float | None:
        if self._begin is None:
            self._begin = (step, now_ms)
        first, begin_ms = self._begin
        total = self._progress.total_steps
        if total is None or step <= first:
            return None
        return (total - step) * (now_ms - begin_ms) / 1000 / (step - first)
