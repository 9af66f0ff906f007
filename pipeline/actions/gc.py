"""What may be deleted under .asl: records of jobs that nobody needs any more.

A result lives in DVC's cache, not here; what goes is checkpoints, frozen code and logs.
"""

import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.actions.states import JobReport
from pipeline.jobs.verdict import Verdict

DAY_S = 86400.0


@dataclass(frozen=True)
class Garbage:
    """One folder that may go, and why.

    Attributes:
        folder: Under `.asl`.
        why: For people.
        size: Bytes.
    """

    folder: Path
    why: str
    size: int


def find_garbage(
    scratch: Path,
    reports: Sequence[JobReport],
    referenced: Collection[str],
    now: float,
    days: float,
) -> list[Garbage]:
    """Return what may be deleted.

    A job stays while it may live, while a result that some commit or the working tree has carries
    its fingerprint, and for `days` after its last sign of life.

    Args:
        scratch: The project's `.asl`.
        reports: All jobs.
        referenced: Fingerprints of results, of all commits that a name leads to.
        now: Seconds since 1970.
        days: How long an ended job is kept at least.
    """
    found = []
    used: set[str] = set()
    for report in reports:
        why = _reason(report, referenced, now, days)
        if why is None:
            used |= {attempt.terms.snapshot for attempt in report.attempts}
        else:
            found.append(Garbage(report.paths.folder, why, _size(report.paths.folder)))
    for folder in sorted((scratch / "code").glob("[0-9a-f]*")):
        if folder.name not in used and now - folder.stat().st_mtime > days * DAY_S:
            found.append(Garbage(folder, "code of no job that is kept", _size(folder)))
    return found


def delete(garbage: Sequence[Garbage]) -> None:
    """Delete it; what cannot be deleted raises."""
    for item in garbage:
        shutil.rmtree(item.folder)


def _reason(report: JobReport, referenced: Collection[str], now: float, days: float) -> str | None:
    if report.verdict not in (Verdict.SUCCEEDED, Verdict.FAILED, Verdict.LOST):
        return None
    state = report.state
    names = {report.paths.fingerprint, state.fingerprint if state is not None else None}
    if names & set(referenced):
        return None
    last = max(
        report.job.submitted,
        *(attempt.submitted for attempt in report.attempts),
        state.heartbeat if state is not None else 0.0,
    )
    age = (now - last) / DAY_S
    return None if age < days else f"{report.verdict}, {age:.0f} days old, in no commit"


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())
