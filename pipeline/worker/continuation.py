"""See to it that an interrupted run goes on: requeued, or handed over as a new attempt.

The scheduler may not answer for a while, and somebody may be submitting the same run: both are
waited for, for as long as a job may take to show in the queue (`Patience.submitted_s`).
"""

import logging
from collections.abc import Callable
from typing import TypeVar

from pipeline.jobs.claim import Claim, claim, renewed
from pipeline.jobs.folder import PROVISIONAL
from pipeline.jobs.job import newer_attempt
from pipeline.schedulers.port import JobPhase, QueuedJob, SchedulerError
from pipeline.submission.hand_over import hand_over, prepare_attempt
from pipeline.worker.process import DONE, INTERRUPTED, JobProcess

logger = logging.getLogger(__name__)

POLL_S = 1.0

Found = TypeVar("Found")


def go_on_later(process: JobProcess, restarts: int) -> int:
    """Requeue a job; where that is forbidden, hand over a new attempt. Return the exit code.

    Args:
        process: The job's first process. It writes nothing any more: the next start may be there
            before this function returns.
        restarts: How often the run was interrupted before.
    """
    job_id, name = process.place.job_id, process.job.name
    if process.attempt.terms.asked.get("requeue") == "allowed" and job_id is not None:
        requeued = _persist(process, lambda: _requeue(process, job_id))
        if requeued is None:
            logger.error("%s: the scheduler does not answer; submit it again later", name)
        if requeued is not False:
            return INTERRUPTED
    return hand_over_again(process, restarts + 1, after=())


def hand_over_again(process: JobProcess, restarts: int, after: tuple[str, ...]) -> int:
    """Hand over a new attempt on the same terms and return the exit code.

    Args:
        process: The job's first process.
        restarts: How often the run was interrupted so far.
        after: Ids of jobs that must succeed before it.
    """
    paths, job, services = process.paths, process.job, process.services
    # before the claim, which nobody should have to wait for
    if _persist(process, lambda: _queue(process)) is None:
        logger.error("%s: the scheduler does not answer; submit it again later", job.name)
        return INTERRUPTED
    held = _persist(process, lambda: _claim(process))
    if held is None:
        logger.error("%s: other processes keep submitting it; submit it again later", job.name)
        return INTERRUPTED
    try:
        if newer_attempt(paths, process.attempt.number) is not None:
            logger.info("%s: it was submitted again by someone else", job.name)
            return DONE
        terms = process.attempt.terms
        ready = prepare_attempt(
            paths,
            job,
            terms,
            restarts=restarts,
            after=after,
            drop=process.attempt.drop,
            clock=services.clock,
        )
        with renewed([held], services.clock):
            attempts, error = hand_over(
                [ready], services.scheduler, services.patience, services.pause, services.clock
            )
    except OSError as error:
        logger.error("%s could not be submitted again: %s", job.name, error)
        return INTERRUPTED
    finally:
        held.release()
    if error is not None and attempts[0].job_id is None:
        logger.error("%s could not be submitted again: %s", job.name, error)
        return INTERRUPTED
    logger.info("%s: continues as job %s", job.name, attempts[0].job_id)
    return DONE


def _persist(process: JobProcess, attempt: Callable[[], Found | None]) -> Found | None:
    """Try something until it returns something, or it is time to give up."""
    services = process.services
    give_up = services.clock() + services.patience.submitted_s
    while True:
        found = attempt()
        if found is not None or services.clock() >= give_up:
            return found
        services.pause(POLL_S)


def _requeue(process: JobProcess, job_id: str) -> bool | None:
    """Ask for the job to be requeued.

    Returns:
        True if it is, or if the scheduler has something else in mind with it: being ended or back
        in the queue already, it needs no second one beside it. False if it just runs on: requeueing
        is forbidden. None where the scheduler does not say.
    """
    for _ in range(2):  # the first time it may not have been heard
        try:
            process.services.scheduler.requeue(job_id)
        except SchedulerError as error:
            queue = _queue(process)
            if queue is None:
                return None
            if not any(job.job_id == job_id and job.phase is JobPhase.RUNNING for job in queue):
                logger.info("%s: left to the scheduler (%s)", process.job.name, error)
                return True
            logger.warning("not requeued: %s", error)
        else:
            logger.info("%s: requeued as %s", process.job.name, job_id)
            return True
    return False


def _queue(process: JobProcess) -> list[QueuedJob] | None:
    try:
        return process.services.scheduler.queue()
    except SchedulerError as error:
        logger.warning("the queue cannot be read: %s", error)
        return None


def _claim(process: JobProcess) -> Claim | None:
    folder, recipe = process.paths.folder.parent, process.job.recipe
    try:
        return claim(folder, PROVISIONAL + recipe, process.services.clock())
    except OSError as error:
        logger.warning("%s cannot be claimed: %s", process.job.name, error)
        return None
