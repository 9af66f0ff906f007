"""Every file name of the folder that a bundle works in, beside the bundle."""

import json
from dataclasses import dataclass
from pathlib import Path

from pipeline.bundles.manifest import CODE, SUITE, Record, read_record
from pipeline.jobs.folder import JobFolder
from pipeline.writing import write_bytes


@dataclass(frozen=True)
class WorkFolder:
    """The folder in which a bundle runs; it survives a kill, and the next start finds it.

    Attributes:
        folder: `NAME.work`.
    """

    folder: Path

    @property
    def code(self) -> Path:
        return self.folder / CODE

    @property
    def suite(self) -> Path:
        """Inputs and, once they are made, outputs, as a suite's folder has them."""
        return self.folder / SUITE

    def job(self, fingerprint: str) -> JobFolder:
        """Return the scratch of a run."""
        return JobFolder.of(self.folder / ".asl", fingerprint)

    def read_record(self, name: str) -> Record | None:
        """Return what became of a run, None where it has not ended yet."""
        try:
            return read_record(json.loads(self._record(name).read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return None

    def write_record(self, record: Record) -> None:
        """Keep what became of a run."""
        path = self._record(record.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, record.text().encode())

    def _record(self, name: str) -> Path:
        return self.folder / "done" / f"{name}.json"
