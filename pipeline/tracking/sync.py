"""Bring journals of the project into the tracker's store: all, one, or those that wait."""

import contextlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path

from asl_core.engine.journal import first_time
from asl_core.wording import counted
from pipeline.errors import NotFinishedError, TrackingError, UserError
from pipeline.jobs.folder import JobFolder
from pipeline.jobs.journal import read_run_name
from pipeline.jobs.liveness import has_succeeded, is_under_way
from pipeline.project import named_suite
from pipeline.stages.table import STAGES
from pipeline.tracking.current import follow_locks
from pipeline.tracking.locked import is_aside
from pipeline.tracking.port import StoreRefusedError, Tracker
from pipeline.tracking.pulled import take_pulled_journals

logger = logging.getLogger(__name__)

FOLLOW_S, LONGEST_S = 30.0, 600.0
"""How often a run is brought while it is made, and how rarely while the store does not answer."""
POLL_S, PATIENCE, REST = 1.0, 50, 5
"""Between two looks at a run; a long journal, which takes a while to read, is read more rarely: it
rests so many times as long, or, where all runs are looked at, the last number."""
PAUSES = (1.0, 2.0, 4.0, 8.0)
"""Seconds between the tries to find all artifacts of a run that has just ended: DVC links outputs
into its cache then, and a file is absent for a moment."""


def sync_journals(
    root: Path, tracker: Tracker, those: Callable[[JobFolder], bool] = lambda _: True
) -> int:
    """Bring all stage runs up to their journals, in the order in which they began.

    Those too whose results were pulled and not made here. Says a line for each run that is there in
    whole since, and for each that cannot be shown.

    Args:
        root: Folder that has `.dvc`.
        tracker: The store.
        those: Which runs to look at.

    Returns:
        Number of runs that are in the store now.

    Raises:
        NotFinishedError: The store cannot be reached; nothing is lost, try later.
    """
    take_pulled_journals(root)
    jobs = sorted(_all_jobs(root), key=lambda job: first_time(job.journal) or 0)
    count = 0
    for number, job in enumerate(jobs):
        if not those(job):
            continue
        before = tracker.is_shown(job.folder)
        try:
            tracker.ingest(job.journal, outputs_of(job, root))
        except StoreRefusedError as error:
            waiting = len(jobs) - number
            raise NotFinishedError(
                f"{error}; {waiting} of {counted(len(jobs), 'run')} still to be sent, "
                "nothing is lost; run asl-pipe sync again"
            ) from error
        except TrackingError as error:
            logger.warning("%s: skipped: %s", job.folder.name[:12], error)
            continue
        count += 1
        _drop_kept(job, tracker)
        run = read_run_name(job.journal)
        if run is not None and not before and tracker.is_shown(job.folder):
            logger.info("%s: %s@%s: sent", run.suite, run.stage, run.key)
    return count


def _all_jobs(root: Path) -> list[JobFolder]:
    journals = (root / ".asl" / "jobs").glob("*/journal/attempt-000.jsonl")
    return [JobFolder(path.parent.parent) for path in journals]


def sync_run(
    root: Path,
    beginning: str,
    tracker: Tracker,
    out: Path | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Bring one stage run up to its journal, and say nothing when that is done.

    Args:
        root: Folder that has `.dvc`.
        beginning: Of the run's fingerprint, as far as it takes to tell it from others.
        tracker: The store.
        out: Folder with the run's artifacts; found by itself if absent.
        pause: Waits so many seconds.

    Raises:
        UserError: No run has such a fingerprint, or several have.
        NotFinishedError: The store cannot be reached; nothing is lost, try later.
    """
    job = _find_job(root, beginning)
    for earlier in _unknown_before(job, root, tracker):
        with contextlib.suppress(TrackingError):  # what is wrong with the store, this run says
            tracker.ingest(earlier.journal, outputs_of(earlier, root))
    try:
        whole = _bring(job, out, root, tracker)
        for seconds in PAUSES:
            if whole:
                return
            pause(seconds)
            whole = _bring(job, out, root, tracker)
    except TrackingError as error:
        run = read_run_name(job.journal)
        name = job.folder.name[:12] if run is None else f"{run.stage}@{run.key}"
        raise NotFinishedError(
            f"{name} is not in {tracker.title} yet, run asl-pipe sync again: {error}"
        ) from error
    if not whole:
        name = job.folder.name[:12]
        logger.warning("%s: sent to %s without the files that are gone", name, tracker.title)


def follow_run(
    root: Path,
    beginning: str,
    tracker: Tracker,
    out: Path | None = None,
    pause: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Bring one stage run into the store while it is made, and what is left when it has ended.

    A store that does not answer is asked less and less often; that is said once.

    Args:
        root: Folder that has `.dvc`.
        beginning: Of the run's fingerprint, as far as it takes to tell it from others.
        tracker: The store.
        out: Where the run's artifacts will be; found by itself if absent.
        pause: Waits so many seconds.
        clock: Seconds since some moment.

    Raises:
        UserError: No run has such a fingerprint, or several have.
        NotFinishedError: The store cannot be reached at the end; nothing is lost, try later.
    """
    job = _find_job(root, beginning)
    delay, told, first = FOLLOW_S, False, True
    due = clock() + delay
    while is_under_way(job.journal):
        pause(POLL_S)
        if clock() < due:
            continue
        began = clock()
        try:
            tracker.ingest(job.journal, _where(job, out, root))
            # the first time the tracker is loaded, and its store made
            taken = 0.0 if first else clock() - began
            delay, first = min(max(FOLLOW_S, PATIENCE * taken), LONGEST_S), False
        except TrackingError as error:
            delay = min(2 * delay, LONGEST_S)
            if not told:
                logger.warning("not sent to %s for now: %s", tracker.title, error)
                told = True
        due = clock() + delay
    sync_run(root, job.folder.name, tracker, out, pause)


def follow_all(
    root: Path,
    tracker: Tracker,
    settle: Callable[[], None] = lambda: None,
    pause: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Bring all journals into the store again and again, until somebody ends it.

    The longer that takes, the longer it rests.

    Args:
        root: Folder that has `.dvc`.
        tracker: The store.
        settle: Called after each time; raises NotFinishedError if the store does not answer.
        pause: Waits so many seconds.
        clock: Seconds since some moment.
    """
    delay, told, first = FOLLOW_S, False, True
    shown: set[Path] = set()
    while True:
        began = clock()
        before, shown = shown, _shown(root, tracker)
        # what has become whole may be what others have waited for, an encoder for one
        settled = shown if shown == before else set()
        try:
            sync_journals(root, tracker, those=partial(_is_none_of, settled))
            settle()
            # the first time there may be a backlog
            taken = 0.0 if first else clock() - began
            delay, told, first = min(max(FOLLOW_S, REST * taken), LONGEST_S), False, False
        except NotFinishedError as error:
            delay = min(2 * delay, LONGEST_S)
            if not told:
                logger.warning("%s", error)
                told = True
        except OSError as error:  # a folder that gc moves, a filesystem that fails for a moment
            delay = min(2 * delay, LONGEST_S)
            logger.warning("looking again in %d s: %s", delay, error)
        pause(delay)


def _shown(root: Path, tracker: Tracker) -> set[Path]:
    """Return the folders of all runs of which nothing is left to bring."""
    return {job.folder for job in _all_jobs(root) if tracker.is_shown(job.folder)}


def _is_none_of(folders: Collection[Path], job: JobFolder) -> bool:
    return job.folder not in folders


def catch_up(root: Path, tracker: Tracker) -> bool:
    """Bring all stage runs up to their journals before something refers to them.

    What is current follows dvc.lock, which has all of them then.

    Returns:
        Whether the store could be reached; if not, one warning has said so.
    """
    try:
        sync_journals(root, tracker)
        follow_locks(root, trusting=True)
    except NotFinishedError as error:
        logger.warning("not sent to %s: %s", tracker.title, error)
        return False
    return True


def _find_job(root: Path, beginning: str) -> JobFolder:
    folder = root / ".asl" / "jobs"
    found = sorted(path.parent for path in folder.glob("*/journal"))
    found = [path for path in found if path.name.startswith(beginning)]
    if len(found) != 1:
        raise UserError(
            f"{len(found) or 'no'} runs in {folder} have a name that starts with "
            f"{beginning!r}; give a longer start, or none for all runs"
        )
    return JobFolder(found[0])


def _unknown_before(job: JobFolder, root: Path, tracker: Tracker) -> list[JobFolder]:
    """Return earlier runs of the same name that the store has not in whole yet, oldest first.

    Results go to the newest encoder of their name in the store, so it has to be there before them,
    whichever of two waiting processes comes first.
    """
    run = read_run_name(job.journal)
    if run is None:
        return []
    earlier: list[tuple[float, JobFolder]] = []
    for other in _all_jobs(root):
        if other == job or tracker.is_shown(other.folder):
            continue
        found = read_run_name(other.journal)
        if (
            found is not None
            and (found.suite, found.key) == (run.suite, run.key)
            and found.started <= run.started
        ):
            earlier.append((found.started, other))
    return [other for _, other in sorted(earlier, key=lambda pair: pair[0])]


def _drop_kept(job: JobFolder, tracker: Tracker) -> None:
    """Delete what was kept to be shown of a run whose own folder is gone."""
    if job.out.exists() and tracker.is_shown(job.folder) and is_aside(job.journal):
        shutil.rmtree(job.out, ignore_errors=True)


def _bring(job: JobFolder, out: Path | None, root: Path, tracker: Tracker) -> bool:
    """Bring a run into the store and say whether it is whole there, as far as it has got.

    Where its files are is asked each time: a stage that has just ended moves them.
    """
    tracker.ingest(job.journal, _where(job, out, root))
    _drop_kept(job, tracker)
    return tracker.is_shown(job.folder) or not has_succeeded(job.journal)


def _where(job: JobFolder, out: Path | None, root: Path) -> Path:
    """Return where a run's files are now: in its scratch as long as that is there."""
    return out if out is not None and not job.out.exists() else outputs_of(job, root)


def outputs_of(job: JobFolder, root: Path) -> Path:
    """Return the folder with the artifacts of a run.

    What the suite shows now may come from a newer run of the same stage: then this run's own
    scratch is all there is.
    """
    run = read_run_name(job.journal)
    suite = named_suite(root, run.suite) if run is not None else None
    stage = STAGES.get(run.stage) if run is not None else None
    if run is None or suite is None or stage is None or job.out.exists():
        return job.details
    details, metrics = stage.details(suite, run.key), stage.metrics_path(run.key)
    if metrics is None:
        return details
    try:
        shown = json.loads((suite / metrics).read_text(encoding="utf-8"))["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):  # a file that somebody has edited
        return job.details
    return details if shown == run.fingerprint else job.details
