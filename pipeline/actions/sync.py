"""Bring every journal of the project into the tracking store."""

import json
import logging
from pathlib import Path

from pipeline.errors import NotFinishedError, TrackingError
from pipeline.jobs.layout import JobPaths, OutputPaths
from pipeline.jobs.mlflow_link import read_link
from pipeline.jobs.record import read_record
from pipeline.jobs.store import StoreRefusedError
from pipeline.ports import Tracker
from pipeline.project import suite_folders

logger = logging.getLogger(__name__)


def sync_journals(root: Path, tracker: Tracker) -> int:
    """Bring all stage runs up to their journals, in the order in which they began.

    Says a line for each run that was not there yet, and for each that cannot be shown.

    Args:
        root: Folder that has `.dvc`.
        tracker: The store.

    Returns:
        Number of runs that are in the store now.

    Raises:
        NotFinishedError: The store cannot be reached; nothing is lost, try later.
    """
    jobs = sorted((root / ".asl" / "jobs").glob("*/journal/attempt-000.jsonl"), key=_began)
    count = 0
    for number, first_attempt in enumerate(jobs):
        job = JobPaths(first_attempt.parent.parent)
        before = read_link(job.folder)
        try:
            tracker.ingest(job.journal, outputs_of(job, root))
        except StoreRefusedError as error:
            waiting = len(jobs) - number
            raise NotFinishedError(
                f"{error}; {waiting} of {len(jobs)} runs wait, nothing is lost: "
                "asl-pipe sync tries again"
            ) from error
        except TrackingError as error:
            logger.warning("%s: left out: %s", job.folder.name[:12], error)
            continue
        count += 1
        after = read_link(job.folder)
        if after is not None and after != before:
            logger.info("%s: %s@%s: sent, %s", after.suite, after.stage, after.key, after.status)
    return count


def outputs_of(job: JobPaths, root: Path) -> Path:
    """Return the folder with the artifacts of a run.

    What the suite shows now may come from a newer run of the same stage: then this run's own
    scratch is all there is.
    """
    record = read_record(job.record)
    suite = suite_folders(root).get(record.suite) if record is not None else None
    if record is None or suite is None or job.out.exists():
        return job.out
    outputs = OutputPaths.of(suite, record.stage, record.key)
    if outputs.metrics is None:
        return outputs.folder
    try:
        shown = json.loads(outputs.metrics.read_text(encoding="utf-8")).get("fingerprint")
    except (OSError, ValueError):
        return job.out
    return outputs.folder if shown == record.fingerprint else job.out


def _began(first_attempt: Path) -> int:
    """Return the time in the first line, in milliseconds; 0 where there is none."""
    with first_attempt.open(encoding="utf-8") as file:
        try:
            return int(json.loads(file.readline())["t"])
        except (ValueError, KeyError, TypeError):
            return 0
