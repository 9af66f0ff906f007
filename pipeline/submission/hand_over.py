"""Give attempts to the scheduler so that none is lost and none is there twice.

The record comes first, with a token that travels in the job's comment: whatever happens between
here and the scheduler's answer, the next to look finds the job by its token.
"""

import dataclasses
import getpass
import logging
import os
import shlex
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.config.cluster import job_resources
from pipeline.config.container import PYXIS
from pipeline.config.job_resources import JobResources
from pipeline.config.schedulers import VARIABLE
from pipeline.jobs.container import (
    folders_inside,
    launch_command,
    launch_setup,
    with_folders,
)
from pipeline.jobs.folder import JobFolder
from pipeline.jobs.job import (
    Attempt,
    Job,
    Terms,
    comment_of,
    new_token,
    take_number,
    write_attempt,
)
from pipeline.jobs.verdict import Patience
from pipeline.results.code import code_folder
from pipeline.results.dvc_folders import dvc_folders
from pipeline.schedulers.port import BatchJob, Scheduler, SchedulerError, SubmitError

logger = logging.getLogger(__name__)

POLL_S = 1.0


@dataclass(frozen=True)
class ReadyAttempt:
    """An attempt that is ready to go.

    Attributes:
        paths: Its job's record.
        job: What it is to make.
        attempt: Written already.
    """

    paths: JobFolder
    job: Job
    attempt: Attempt


def prepare_attempt(
    paths: JobFolder,
    job: Job,
    terms: Terms,
    *,
    restarts: int = 0,
    after: Sequence[str] = (),
    retry: int = 0,
    drop: bool = False,
    clock: Callable[[], float] = time.time,
) -> ReadyAttempt:
    """Write the next attempt of a job; its token exists from here on.

    Args:
        paths: The job's record.
        job: The job.
        terms: Code, resources, inputs.
        restarts: How often the run was interrupted so far.
        after: Ids of jobs that must succeed before.
        retry: How often in a row nobody was asked.
        drop: It may end where one of `after` does not succeed.
        clock: Seconds since 1970.
    """
    attempt = Attempt(
        number=take_number(paths), token=new_token(), submitted=clock(), host=socket.gethostname(),
        user=getpass.getuser(), terms=terms, restarts=restarts, after=tuple(after),
        retry=retry, drop=drop,
    )  # fmt: skip
    write_attempt(paths, attempt)
    return ReadyAttempt(paths, job, attempt)


def hand_over(
    ready: Sequence[ReadyAttempt],
    scheduler: Scheduler,
    patience: Patience | None = None,
    pause: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.time,
) -> tuple[list[Attempt], SubmitError | None]:
    """Submit attempts and note their ids.

    When the scheduler reports an error, the queue is searched for the tokens before anything else
    is believed.

    Args:
        ready: What to submit.
        scheduler: Where to.
        patience: For how long to search.
        pause: Waits so many seconds.
        clock: Seconds since 1970.

    Returns:
        The attempts, each with an id, or with the reason for which it was refused, or with neither
        where it is not known whether it was taken; and the scheduler's error.
    """
    patience = patience or Patience()
    try:
        ids = scheduler.submit([batch_job(each) for each in ready])
        taken = dict(zip((each.attempt.token for each in ready), ids, strict=True))
        error = None
    except SubmitError as caught:
        error = caught
        tokens = [each.attempt.token for each in ready]
        answers = dict(zip(tokens, caught.job_ids, strict=False))
        taken = {token: job_id for token, job_id in answers.items() if job_id is not None}
        wanted = {
            each.attempt.token: comment_of(each.paths.fingerprint, each.attempt.token)
            for each in ready
            if each.attempt.token not in taken
        }
        seconds = patience.submitted_s if caught.ambiguous else 0.0
        logger.warning("%s; looking for the jobs in the queue", caught)
        taken |= _search(wanted, scheduler, clock() + seconds, pause, clock)
    attempts = []
    for each in ready:
        job_id = taken.get(each.attempt.token)
        refused = str(error) if job_id is None and error and not error.ambiguous else None
        attempt = dataclasses.replace(each.attempt, job_id=job_id, refused=refused)
        write_attempt(each.paths, attempt)
        attempts.append(attempt)
    return attempts, error


def batch_job(ready: ReadyAttempt) -> BatchJob:
    """Return what the scheduler is given for an attempt.

    Raises:
        UserError: There is no such scheduler.
    """
    paths, attempt = ready.paths, ready.attempt
    terms = attempt.terms
    asked = _with_folders(job_resources(terms.scheduler, terms.asked), ready)
    code = code_folder(paths.scratch, terms.snapshot)
    command = launch_command(
        asked, paths.scratch, terms.data_root, code, "pipeline.worker.main", str(paths.folder),
        attempt.token,
    )  # fmt: skip
    kept = "${PYTHONPATH:+" + os.pathsep + "$PYTHONPATH}"
    return BatchJob(
        name=ready.job.name,
        folder=paths.folder,
        comment=comment_of(paths.fingerprint, attempt.token),
        command=command,
        resources=asked,
        setup=(
            *asked.setup_lines(),
            f"export PYTHONPATH={shlex.quote(str(code))}{kept}",
            f"export {VARIABLE}={shlex.quote(terms.scheduler)}",
            *launch_setup(asked, paths.scratch, terms.data_root, code),
        ),
        after=attempt.after,
        drop=attempt.drop,
        avoid=tuple(terms.avoid),
    )


def _with_folders(asked: JobResources, ready: ReadyAttempt) -> JobResources:
    """Return what a job asks for, with what its container sees, where the scheduler mounts it."""
    if asked.container is None or asked.container.runtime != PYXIS:
        return asked
    scratch = ready.paths.scratch
    folders = folders_inside(
        scratch, ready.attempt.terms.data_root, dvc_folders(scratch.parent), os.environ
    )
    return with_folders(asked, folders)


def _search(
    wanted: dict[str, str],
    scheduler: Scheduler,
    give_up: float,
    pause: Callable[[float], None],
    clock: Callable[[], float],
) -> dict[str, str]:
    """Look for comments in the queue until all are found or it is time to give up."""
    while True:
        found: dict[str, str] = {}
        try:
            ids = {job.comment: job.job_id for job in scheduler.queue()}
            found = {token: ids[comment] for token, comment in wanted.items() if comment in ids}
        except SchedulerError as error:
            logger.warning("the queue cannot be read: %s", error)
        if len(found) == len(wanted) or clock() >= give_up:
            return found
        pause(POLL_S)
