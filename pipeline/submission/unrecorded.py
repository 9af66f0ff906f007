"""Jobs of which a project has no record: older attempts, those whose record was lost. Reads only.

What such a job printed is found by its id, which is in the names of its logs; what it waits for, by
the queue, whose comment begins with the fingerprint of the run.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.jobs.folder import PROVISIONAL, JobFolder
from pipeline.jobs.job import token_in
from pipeline.schedulers.port import QueuedJob
from pipeline.submission.job_reports import Queue

SHORTEST_FINGERPRINT = 6


@dataclass(frozen=True)
class Unrecorded:
    """What is known of a job without a record.

    Attributes:
        said: What the queue or the scheduler says of it, for people.
        paths: The folder in which it works or worked; None where that is not in this project.
        job_id: The scheduler's.
    """

    said: str
    paths: JobFolder | None
    job_id: str | None


def find_unrecorded(
    scratch: Path, name: str, queue: Queue, explain: Callable[[str], str | None]
) -> Unrecorded | None:
    """Return what is known of a job; None where neither a log nor the queue has it.

    Args:
        scratch: The project's `.asl`.
        name: A job's id, or the beginning of a fingerprint.
        queue: What the scheduler said a moment ago.
        explain: Asks it why a job ended.
    """
    line = next((job for job in queue.jobs if _is_meant(job, name)), None)
    folder = _by_log(scratch, name) or (_by_comment(scratch, line.comment) if line else None)
    if line is not None:
        where = f" on {line.nodes}" if line.nodes else ""
        said = f"job {line.job_id} is {line.said}{where} {line.reason}".strip()
        return Unrecorded(said, folder, line.job_id)
    if folder is None:
        return None
    ended = explain(name)
    unknown = "the queue does not have it any more" if queue.error is None else str(queue.error)
    return Unrecorded(f"job {name}: {ended or unknown}", folder, name)


def _is_meant(job: QueuedJob, name: str) -> bool:
    if job.job_id == name:
        return True
    if token_in(job.comment) is None or len(name) < SHORTEST_FINGERPRINT:
        return False
    known = job.comment.split(":")[1]
    return known.startswith(name) or name.removeprefix(PROVISIONAL).startswith(known)


def _by_log(scratch: Path, job_id: str) -> JobFolder | None:
    """Return the folder that has the logs of a job of this id, the newest where there are two."""
    if not job_id.replace("_", "").isalnum():
        return None
    found = [*scratch.glob(f"jobs/*/log/{job_id}_*.log"), *scratch.glob(f"jobs/*/log/{job_id}.log")]
    newest = max(found, key=lambda path: path.stat().st_mtime, default=None)
    return None if newest is None else JobFolder(newest.parents[1])


def _by_comment(scratch: Path, comment: str) -> JobFolder | None:
    if token_in(comment) is None:
        return None
    beginning = comment.split(":")[1]
    for pattern in (f"{beginning}*", f"{PROVISIONAL}{beginning}*"):
        for folder in sorted((scratch / "jobs").glob(pattern)):
            if folder.is_dir() and folder.suffix != ".claim":
                return JobFolder(folder)
    return None
