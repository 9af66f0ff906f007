"""A tracker in one file: a CSV for each run, to which every point is appended once.

`tracker: csv_tracker:csv_tracker` in a project's cluster.yaml chooses it; its store is the folder
`curves` of the project. $CSV_TRACKER_DIES_AFTER says after how many bytes it is killed, for tests.
"""

import contextlib
import csv
import fcntl
import io
import os
import signal
from collections.abc import Iterator
from pathlib import Path

from pipeline.jobs.state import RunStatus
from pipeline.tracking.port import TrackerKind
from pipeline.tracking.tracked import Point, read_tracked_run

SHOWN = "csv_tracker.txt"
"""In a run's folder: it has ended, and the store had all of it then."""


def csv_tracker() -> TrackerKind:
    """Return what `csv_tracker:csv_tracker` in cluster.yaml stands for."""
    return TrackerKind("CSV files", lambda root, _trusting: CsvTracker(root / "curves"))


class CsvTracker:
    """The tracker's port on a folder.

    Args:
        folder: Made when the first run is brought.
    """

    title = "CSV files"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def ingest(self, journal: Path, out: Path) -> None:
        run = read_tracked_run(journal)
        with self._locked():
            path = self.folder / f"{run.fingerprint}.csv"
            _drop_torn_line(path)
            known = read_points(path)
            if known - run.points():  # a resume has voided some
                path.unlink()
                known = set()
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows(sorted(run.points() - known))
            _append(path, text.getvalue().encode())
        if run.status is not RunStatus.RUNNING:
            (journal.parent / SHOWN).write_text(run.status)

    def is_shown(self, job_folder: Path) -> bool:
        note = job_folder / SHOWN
        files = (job_folder / "journal").rglob("*.jsonl")
        return note.exists() and all(f.stat().st_mtime <= note.stat().st_mtime for f in files)

    def page_of(self, fingerprint: str) -> str | None:
        path = self.folder / f"{fingerprint}.csv"
        return path.as_uri() if path.exists() else None

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self.folder.mkdir(exist_ok=True)
        with (self.folder / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def read_points(path: Path) -> set[Point]:
    """Return the points of a run's file; none where there is none.

    Raises:
        ValueError: One is there twice.
    """
    if not path.exists():
        return set()
    with path.open(newline="") as file:
        rows = [(key, int(step), value, int(ms)) for key, step, value, ms in csv.reader(file)]
    points = set(rows)
    if len(points) != len(rows):
        raise ValueError(f"{path}: {len(rows) - len(points)} points are there twice")
    return points


def _drop_torn_line(path: Path) -> None:
    if path.exists():
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)


def _append(path: Path, text: bytes) -> None:
    limit = os.environ.get("CSV_TRACKER_DIES_AFTER")
    with path.open("ab") as file:
        file.write(text if limit is None else text[: int(limit)])
        file.flush()
        if limit is not None and len(text) > int(limit):
            os.kill(os.getpid(), signal.SIGKILL)
