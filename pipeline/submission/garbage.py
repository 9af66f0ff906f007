"""What may be deleted under .asl: what jobs and runs left there and nothing needs any more.

A result lives in DVC's cache, not here; what goes is checkpoints, frozen code and logs.
"""

import contextlib
import getpass
import os
import secrets
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from asl_core.wording import counted
from pipeline.jobs.claim import Claim, claim
from pipeline.jobs.folder import FEATURES, PROVISIONAL, JobFolder
from pipeline.jobs.local_run import is_locked
from pipeline.jobs.verdict import Verdict
from pipeline.submission.job_reports import JobReport

DAY_S = 86400.0
YOUNGEST_S = 3600.0
"""What no record names yet, or no lock shows from another machine, is kept at least so long."""

LARGE = ("ckpt", "out", "out.*", "rank-*")
"""What takes most space in a run's folder, and is not needed to know how the run went."""

ENDED = (Verdict.SUCCEEDED, Verdict.FAILED, Verdict.STOPPED, Verdict.LOST)


@dataclass(frozen=True)
class Garbage:
    """One folder that may go, and why.

    Attributes:
        folder: Under `.asl`.
        why: For people.
        size: Bytes.
        recipe: Of the job whose record it is; nobody may submit it meanwhile.
        changed: When it was last in use, in seconds since 1970: moved meanwhile, it stays.
    """

    folder: Path
    why: str
    size: int
    recipe: str | None = None
    changed: float | None = None


def find_garbage(
    scratch: Path,
    reports: Sequence[JobReport],
    referenced: Collection[str],
    now: float,
    days: float,
    is_shown: Callable[[Path], bool],
    waiting: Collection[Path] = (),
) -> list[Garbage]:
    """Return what may be deleted.

    A job stays while it may live, while a result that some commit or the working tree has carries
    its fingerprint, while a job that may live needs it, and for `days` after its last sign of life.
    So does a folder in which a run works, be it of such a job or of `dvc repro`. A job whose result
    waits for its adoption stays with the result's files: `dvc gc` deletes the cache's.

    Args:
        scratch: The project's `.asl`.
        reports: All jobs.
        referenced: Fingerprints of results, of all commits that a name leads to.
        now: Seconds since 1970.
        days: How long an ended job is kept at least.
        is_shown: Says whether the tracker shows in whole the run that worked in a folder.
        waiting: Records of jobs whose results no dvc.lock has ever named.
    """
    reasons = {
        report.paths.folder: None
        if report.paths.folder in waiting
        else _reason(report, referenced, now, days)
        for report in reports
    }
    kept = [report for report in reports if reasons[report.paths.folder] is None]
    rest = [report for report in reports if reasons[report.paths.folder] is not None]
    used: set[str] = set()
    while True:
        used |= {name for report in kept for name in _names_in_use(report)}
        kept = [report for report in rest if report.paths.fingerprint in used]
        if not kept:
            break
        rest = [report for report in rest if report not in kept]
    found: list[Garbage] = []
    for report in rest:
        why = reasons[report.paths.folder] or ""
        found += _whole_or_large(JobFolder(report.paths.folder), why, is_shown, report.job.recipe)
    gone = {item.folder for item in found}
    for report in reports:
        if report.paths.folder not in gone:
            used |= {attempt.terms.snapshot for attempt in report.attempts}
    found += _left_by_runs(scratch, used | set(referenced), now, days, is_shown)
    found += _unused_code(scratch, used, now, days)
    found += _old_features(scratch, now, days)
    return [*found, *_left_by_killed_commands(scratch, now)]


def delete(
    garbage: Sequence[Garbage],
    scratch: Path,
    find_again: Callable[[], Sequence[Garbage]],
    now: float,
) -> list[str]:
    """Delete what still is garbage once nobody can submit it any more.

    Each folder is moved out of the way whole before it is deleted: nobody meets half of it.

    Args:
        garbage: What was found.
        scratch: The project's `.asl`.
        find_again: Looks again; called while the runs' claims are held.
        now: Seconds since 1970.

    Returns:
        What could not be deleted, a line each.
    """
    problems: list[str] = []
    claims: dict[str, Claim] = {}
    graves: list[Path] = []
    try:
        for recipe in {item.recipe for item in garbage if item.recipe is not None}:
            held = claim(scratch / "jobs", PROVISIONAL + recipe, now)
            if held is not None:
                claims[recipe] = held
        still = {item.folder for item in find_again()}
        for item in garbage:
            mine = item.recipe is None or (
                item.recipe in claims and claims[item.recipe].is_held()
            )  # fmt: skip
            if item.folder in still and mine:
                with _noted(problems):
                    graves += _bury(item, scratch)
    finally:
        for held in claims.values():
            held.release()
    for grave in graves:
        with _noted(problems):
            shutil.rmtree(grave)
    return problems


def _bury(item: Garbage, scratch: Path) -> list[Path]:
    """Move a folder out of the way and return where it is, nothing if it came into use again."""
    if item.folder.parent == scratch / "gone":
        return [item.folder]
    grave = scratch / "gone" / secrets.token_hex(8)
    grave.parent.mkdir(exist_ok=True)
    item.folder.rename(grave)
    if item.changed is not None and grave.stat().st_mtime != item.changed:
        with contextlib.suppress(OSError):  # else it is there anew
            grave.rename(item.folder)
            return []
    return [grave]


@contextlib.contextmanager
def _noted(problems: list[str]) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        pass  # somebody else deletes too
    except OSError as error:
        problems.append(f"not deleted: {error.filename}: {error.strerror}")


def _reason(report: JobReport, referenced: Collection[str], now: float, days: float) -> str | None:
    if report.verdict not in ENDED or is_locked(JobFolder(report.paths.folder).lock):
        return None
    attempt = report.attempt
    if report.verdict is Verdict.LOST and attempt is not None and attempt.user != getpass.getuser():
        return None  # it may wait in a queue that shows it to its owner alone
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
    return None if age < days else f"{report.verdict}, {counted(age, 'day')} old, in no commit"


def _names_in_use(report: JobReport) -> set[str]:
    """Return the folders of `.asl/jobs` that a job which is kept needs."""
    names = {report.paths.fingerprint}
    if report.state is not None and report.state.fingerprint is not None:
        names.add(report.state.fingerprint)  # where it works
    if report.verdict not in ENDED and report.attempt is not None:
        names |= set(report.attempt.terms.upstream.values())
    return names


def _left_by_runs(
    scratch: Path,
    used: Collection[str],
    now: float,
    days: float,
    is_shown: Callable[[Path], bool],
) -> Iterator[Garbage]:
    """Yield folders that runs worked in and that no job's record is in."""
    for folder in sorted((scratch / "jobs").glob("[0-9a-z]*")):
        job = JobFolder(folder)
        if folder.name in used or folder.suffix == ".claim" or (folder / "job.json").exists():
            continue
        with contextlib.suppress(OSError):
            age_s = now - _last_change(job)
            if age_s < max(days * DAY_S, YOUNGEST_S) or is_locked(job.lock):
                continue
            why = f"of a run without a job, {counted(age_s / DAY_S, 'day')} old, in no commit"
            yield from _whole_or_large(job, why, is_shown)


def _whole_or_large(
    job: JobFolder, why: str, is_shown: Callable[[Path], bool], recipe: str | None = None
) -> Iterator[Garbage]:
    """Yield a run's folder; what is large in it while the tracker has not all of the journal."""
    if not job.journal.is_dir() or is_shown(job.folder):
        yield Garbage(job.folder, why, _size(job.folder), recipe=recipe)
        return
    why = f"{why}; its journal is kept until asl-pipe sync has sent it"
    for pattern in LARGE:
        for large in sorted(job.folder.glob(pattern)):
            yield Garbage(large, why, _size(large), recipe=recipe)


def _unused_code(
    scratch: Path, used: Collection[str], now: float, days: float
) -> Iterator[Garbage]:
    for folder in sorted((scratch / "code").glob("[0-9a-f]*")):
        changed = folder.stat().st_mtime
        if folder.name not in used and now - changed > max(days * DAY_S, YOUNGEST_S):
            yield Garbage(folder, "code of no remaining job", _size(folder), changed=changed)


def _old_features(scratch: Path, now: float, days: float) -> Iterator[Garbage]:
    """Yield what no evaluation has read for long; it can be computed again."""
    for folder in sorted((scratch / FEATURES).glob("*/*")):
        with contextlib.suppress(OSError):
            changed = folder.stat().st_mtime
            if now - changed > max(days * DAY_S, YOUNGEST_S):
                why = f"features, not read for {counted((now - changed) / DAY_S, 'day')}"
                yield Garbage(folder, why, _size(folder), changed=changed)


def _left_by_killed_commands(scratch: Path, now: float) -> Iterator[Garbage]:
    places = (
        ("jobs", ".*.claim.*"), ("code", ".*.part"), ("gone", "*"), (".", "accept-*"),
        (".", "bundle-*"),
    )  # fmt: skip
    for parent, pattern in places:
        for folder in sorted((scratch / parent).glob(pattern)):
            with contextlib.suppress(OSError):
                if parent == "gone" or now - folder.stat().st_mtime > YOUNGEST_S:
                    yield Garbage(folder, "left by a command that was killed", _size(folder))


def _last_change(job: JobFolder) -> float:
    """Return when something in a run's folder changed last, in seconds since 1970."""
    folders = [job.folder, job.journal, job.checkpoints]
    inside = [path for folder in folders if folder.is_dir() for path in folder.iterdir()]
    return max(path.lstat().st_mtime for path in (job.folder, *inside))


def _size(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += Path(parent, name).lstat().st_size
    return total
