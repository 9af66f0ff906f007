"""What the scheduler starts in every process of a job: `-m pipeline.worker.main FOLDER TOKEN`.

Runs from the code that was frozen at submission.

Exit codes: 0 succeeded, or handed over to a new attempt; 1 failed; 2 the input is wrong;
3 stopped by its sweep's halving;
75 interrupted, or another start of the job has taken over.
"""

import atexit
import logging
import os
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from asl_core.errors import InputError
from pipeline.config.schedulers import DEFAULT, VARIABLE
from pipeline.errors import UserError
from pipeline.execution.stop_signals import TERMINATING, stop_signals
from pipeline.garbage import collect_rarely
from pipeline.jobs.folder import JobFolder
from pipeline.jobs.job import Attempt, Job, read_attempts, read_job
from pipeline.schedulers.port import SchedulerError
from pipeline.schedulers.relay import SOCKET_VARIABLE, RelayedScheduler, relayed
from pipeline.worker.helper import Helper
from pipeline.worker.lead import Lead
from pipeline.worker.process import FAILED, WRONG_INPUT, Place, WorkerServices

logger = logging.getLogger(__name__)

POLL_S = 1.0
EXIT_S = 20.0
"""How long a process that has ended may take to clean up."""


def main() -> None:
    """Run the job that the command line names, and exit."""
    collect_rarely()
    from pipeline.execution.gpus import find_gpus
    from pipeline.results.dvc_cache import DvcCache
    from pipeline.schedulers.find import find_scheduler

    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    for package in ("asl_core", "pipeline"):
        logging.getLogger(package).setLevel(logging.INFO)
    paths, token = JobFolder(Path(sys.argv[1])), sys.argv[2]
    outside = relayed(os.environ, os.environ.get(VARIABLE, DEFAULT))
    scheduler = outside or find_scheduler(paths.scratch)
    try:
        tags = {} if outside is None else _begin_inside(outside, os.environ)
        services = WorkerServices(cache=DvcCache(), scheduler=scheduler, gpus=find_gpus, tags=tags)
        code = run_job(paths, token, services, os.environ)
    except (UserError, InputError) as error:  # ranks that do not go together
        logger.error("%s: %s", paths.folder, error)
        code = WRONG_INPUT
    except BaseException:
        logger.exception("%s", paths.folder)
        code = FAILED
    leave(code)


def _begin_inside(outside: RelayedScheduler, environment: Mapping[str, str]) -> dict[str, str]:
    """Tell the process outside the container that signals may come; return what it knows of it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, TERMINATING)  # until there are handlers
    if Place.of(environment).rank > 0:
        if environment[SOCKET_VARIABLE].isdigit():  # else there is nobody on another node
            outside.say_ready()
        return {}
    try:
        outside.say_ready()
        return outside.tags()
    except SchedulerError as error:
        logger.warning("%s; which image this is, nobody knows", error)
        return {}


def leave(code: int) -> NoReturn:
    """End this process now, with an exit code.

    A process group that is still open, NCCL, or a thread that waits would keep a job that is done
    until its time limit. What was registered with atexit runs, for `EXIT_S`.
    """
    for number in TERMINATING:
        signal.signal(number, signal.SIG_IGN)  # the code tells how it ended
    give_up = threading.Timer(EXIT_S, os._exit, (code,))
    give_up.daemon = True
    give_up.start()
    try:
        atexit._run_exitfuncs()  # pyright: ignore[reportPrivateUsage]
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    finally:
        os._exit(code)


def run_job(
    paths: JobFolder, token: str, services: WorkerServices, environment: Mapping[str, str]
) -> int:
    """Run one process of an attempt and return its exit code.

    Args:
        paths: The job's record.
        token: Of the attempt.
        services: The world outside.
        environment: Of the process.
    """
    place, found = Place.of(environment), _find(paths, token, services)
    if found is None:
        logger.error("%s has no attempt %s", paths.folder, token)
        return WRONG_INPUT
    job, attempt = found
    with stop_signals() as signals:
        process = Helper if place.rank > 0 else Lead
        return process(paths, job, attempt, place, services, signals).run()


def _find(paths: JobFolder, token: str, services: WorkerServices) -> tuple[Job, Attempt] | None:
    """Return a job and its attempt; what its submitter has written may show here later."""
    give_up = services.clock() + services.patience.submitted_s
    while True:
        job = read_job(paths)
        attempt = next((a for a in read_attempts(paths) if a.token == token), None)
        if job is not None and attempt is not None:
            return job, attempt
        if services.clock() >= give_up:
            return None
        services.pause(POLL_S)


if __name__ == "__main__":
    main()
