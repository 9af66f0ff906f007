"""A small job that waits for the others of a submission, and then looks after them.

It submits again what may be, tells people how it ended, and is the only one to do so: no process
lives meanwhile. What it does is in `pipeline.worker.follow_up`; here is how it is handed over, and
how anybody sees whether there still is one.
"""

import contextlib
import dataclasses
import getpass
import json
import os
import secrets
import shlex
import shutil
import socket
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config.cluster import job_resources
from pipeline.config.schedulers import VARIABLE
from pipeline.results.code import code_folder
from pipeline.schedulers.port import BatchJob, Scheduler, SchedulerError, SubmitError
from pipeline.submission.job_reports import Queue
from pipeline.writing import write_json

COMMENT = "asl-follow-up:"
FOLDER, RECORD, DONE = "follow-ups", "follow_up.json", "done.json"
KEPT_S = 30 * 86400.0
"""Records of those that have done their work are kept so long."""


@dataclass(frozen=True)
class Followed:
    """A run that is looked after.

    Attributes:
        name: `pretrain@asl`.
        fingerprint: Under which its record lies.
        job_id: Its job when the follow-up was submitted.
    """

    name: str
    fingerprint: str
    job_id: str


@dataclass(frozen=True, kw_only=True)
class FollowUp:
    """What a follow-up is to look after.

    Attributes:
        token: Random; names its folder, and finds it in the queue.
        suite: Folder of the suite, relative to the root; `.` for the demo.
        runs: Those that others need first.
        snapshot: Digest of the frozen code.
        scheduler: Who runs it, as cluster.yaml names it.
        asked: What it asks for.
        submitted: Seconds since 1970.
        number: Of those that followed one another, from 1.
        told: Names of runs of which people know already that they need somebody.
        job_id: The scheduler's; None where its answer is not known.
    """

    token: str
    suite: str
    runs: tuple[Followed, ...]
    snapshot: str
    scheduler: str
    asked: dict[str, Any]
    submitted: float
    number: int = 1
    told: tuple[str, ...] = ()
    job_id: str | None = None
    host: str = dataclasses.field(default_factory=socket.gethostname)
    user: str = dataclasses.field(default_factory=getpass.getuser)


def hand_over_follow_up(
    scratch: Path, follow_up: FollowUp, scheduler: Scheduler, after: Sequence[str]
) -> FollowUp:
    """Submit a follow-up that begins when the jobs of its runs have ended.

    Args:
        scratch: The project's `.asl`.
        follow_up: What it is to do; its record is written first.
        scheduler: Where to.
        after: Ids of the jobs that may still live.

    Returns:
        The same with its job's id.

    Raises:
        SubmitError: It was refused, or it is not known whether it was taken.
    """
    folder = scratch / FOLDER / follow_up.token
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder, follow_up)
    asked = job_resources(follow_up.scheduler, follow_up.asked)
    kept = "${PYTHONPATH:+" + os.pathsep + "$PYTHONPATH}"
    code = code_folder(scratch, follow_up.snapshot)
    job = BatchJob(
        name=f"follow-up {follow_up.suite}",
        folder=folder,
        comment=COMMENT + follow_up.token,
        command=(sys.executable, "-P", "-u", "-m", "pipeline.worker.follow_up", str(folder)),
        resources=asked,
        setup=(
            *asked.setup_lines(),
            f"export PYTHONPATH={shlex.quote(str(code))}{kept}",
            f"export {VARIABLE}={shlex.quote(follow_up.scheduler)}",
        ),
        after_any=tuple(dict.fromkeys(after)),
    )
    try:
        (job_id,) = scheduler.submit([job])
    except SubmitError as error:
        taken = _find(scheduler, job.comment) if error.ambiguous else None
        if taken is None:
            if not error.ambiguous:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        job_id = taken
    known = dataclasses.replace(follow_up, job_id=job_id)
    _write(folder, known)
    return known


def new_token() -> str:
    """Return a token that no other follow-up has."""
    return secrets.token_hex(6)


def read_follow_up(folder: Path) -> FollowUp | None:
    """Return what a follow-up is to do; None where that cannot be read."""
    try:
        raw = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        known = {field.name for field in dataclasses.fields(FollowUp)}
        values = {name: value for name, value in raw.items() if name in known}
        runs = tuple(Followed(**run) for run in values.pop("runs"))
        told = tuple(values.pop("told", ()))
        return FollowUp(**values, runs=runs, told=told)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def write_done(folder: Path, said: Sequence[str], problems: Sequence[str], now: float) -> None:
    """Note that a follow-up has done its work, and what it could not do."""
    write_json(folder / DONE, {"ended": now, "said": list(said), "problems": list(problems)})


def unfinished(scratch: Path) -> Iterator[FollowUp]:
    """Yield the follow-ups that have not done their work, whether or not they still can."""
    for path in sorted((scratch / FOLDER).glob(f"*/{RECORD}")):
        if not (path.parent / DONE).exists() and (found := read_follow_up(path.parent)) is not None:
            yield found


def is_in(queue: Queue, follow_up: FollowUp) -> bool:
    """Say whether a follow-up waits or runs, as far as the queue knows."""
    comment = COMMENT + follow_up.token
    return any(
        job.comment == comment or (not job.comment and job.job_id == follow_up.job_id)
        for job in queue.jobs
        if not job.has_ended and not job.can_never_start
    )


def not_followed(scratch: Path, queue: Queue, job_ids: Collection[str]) -> set[str]:
    """Return those of the jobs that no living follow-up waits for."""
    living = (each for each in unfinished(scratch) if is_in(queue, each))
    return set(job_ids) - {run.job_id for each in living for run in each.runs}


def follow_up_problems(scratch: Path, queue: Queue, now: float, settling_s: float) -> list[str]:
    """Return what `status` says of follow-ups that were lost or could not tell, a line each."""
    found: list[str] = []
    for each in unfinished(scratch):
        late = now - each.submitted > settling_s
        if queue.error is None and each.user == queue.user and late and not is_in(queue, each):
            found.append(
                f"the follow-up of {len(each.runs)} jobs (job {each.job_id or 'unknown'}) ended "
                "without doing its work: nobody was told; asl-pipe submit makes a new one"
            )
    for path in sorted((scratch / FOLDER).glob(f"*/{DONE}")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            done = json.loads(path.read_text(encoding="utf-8"))
            if now - done["ended"] < 86400.0:
                found += [f"a follow-up could not do everything: {line}"
                          for line in done["problems"]]  # fmt: skip
    return found


def remove_old(scratch: Path, now: float) -> None:
    """Remove the folders of follow-ups that did their work long ago."""
    for path in (scratch / FOLDER).glob(f"*/{DONE}"):
        with contextlib.suppress(OSError):
            if now - path.stat().st_mtime > KEPT_S:
                shutil.rmtree(path.parent, ignore_errors=True)


def _find(scheduler: Scheduler, comment: str) -> str | None:
    """Return the id of a job that was taken although its submission reported an error."""
    with contextlib.suppress(SchedulerError):
        return next((job.job_id for job in scheduler.queue() if job.comment == comment), None)
    return None


def _write(folder: Path, follow_up: FollowUp) -> None:
    write_json(folder / RECORD, dataclasses.asdict(follow_up))
