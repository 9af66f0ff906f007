"""See to it that an interrupted run goes on: requeued, or handed over as a new attempt."""

import contextlib
import logging

from pipeline.actions.hand_over import hand_over, pack
from pipeline.actions.job_process import DONE, INTERRUPTED, JobProcess
from pipeline.jobs.claim import claim
from pipeline.jobs.job import PROVISIONAL
from pipeline.ports import QueueState, SchedulerError

logger = logging.getLogger(__name__)


def go_on_later(process: JobProcess, restarts: int) -> int:
    """Requeue a job; where that is forbidden, hand over a new attempt. Return the exit code.

    Args:
        process: The job's first process. It writes nothing any more: the next start may be there
            before this function returns.
        restarts: How often the run was interrupted before.
    """
    job_id, scheduler = process.place.job_id, process.services.scheduler
    if process.attempt.terms.slurm.get("requeue") == "allowed" and job_id is not None:
        try:
            scheduler.requeue(job_id)
        except SchedulerError as error:
            if not _still_runs(process, job_id):
                logger.info("%s: left to the scheduler (%s)", process.job.name, error)
                return INTERRUPTED
            logger.warning("not requeued (%s); submitting it anew", error)
        else:
            logger.info("%s: requeued as %s", process.job.name, job_id)
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
    held = claim(paths.folder.parent, PROVISIONAL + job.recipe, services.clock())
    if held is None:
        logger.warning("somebody submits %s at this moment", job.name)
        return INTERRUPTED
    try:
        terms = process.attempt.terms
        parcel = pack(paths, job, terms, restarts=restarts, after=after, clock=services.clock)
        attempts, error = hand_over(
            [parcel], services.scheduler, services.patience, services.pause, services.clock
        )
    finally:
        held.release()
    if error is not None and attempts[0].job_id is None:
        logger.error("%s could not be submitted anew: %s", job.name, error)
        return INTERRUPTED
    logger.info("%s: goes on as job %s", job.name, attempts[0].job_id)
    return DONE


def _still_runs(process: JobProcess, job_id: str) -> bool:
    """Say whether the scheduler has nothing in mind with a job that it does not requeue.

    Being ended or back in the queue already, it needs no second one beside it.
    """
    with contextlib.suppress(SchedulerError):
        queue = process.services.scheduler.queue()
        return any(job.job_id == job_id and job.state == QueueState.RUNNING for job in queue)
    return False
