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


class ProgressReader:
    """Follows the newest attempt in a journal folder.

    Args:
        journal: Folder with `attempt-*.jsonl`; need not be there yet.
    """

    def __init__(self, journal: Path) -> None:
        self.journal = journal
        self._file: Path | None = None
        self._offset = 0
        self._progress = Progress()

    def read(self) -> Progress:
        """Return the newest numbers."""
        newest = max(self.journal.glob("attempt-*.jsonl"), default=None)
        if newest is None:
            return self._progress
        if newest != self._file:
            self._file, self._offset, self._progress = newest, 0, Progress()
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
            elif kind == "metrics" and "train/loss" in record["values"]:
                values = record["values"]
                self._progress = replace(
                    self._progress,
                    step=int(record["step"]),
                    loss=float(values["train/loss"]),
                    images_per_s=float(values.get("train/images_per_s", "nan")),
                )
        except (ValueError, KeyError, TypeError):
            return
