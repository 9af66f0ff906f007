"""What a follow-up's job runs: `-m pipeline.worker.follow_up FOLDER`, from the frozen code.

Looks after the runs that its record names, tells people, and hands over to another follow-up where
some go on. Exit codes: 0 done; 1 something could not be done; 2 its record cannot be read.
"""

import dataclasses
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from pipeline.config.cluster import Notify, read_cluster
from pipeline.errors import AslPipeError, UserError
from pipeline.results.git import Git
from pipeline.schedulers.port import SchedulerError
from pipeline.submission.follow_up import (
    Followed,
    FollowUp,
    hand_over_follow_up,
    new_token,
    read_follow_up,
    write_done,
)
from pipeline.submission.notify import RunEnd, message_of, tell
from pipeline.submission.plan import SubmissionServices
from pipeline.submission.retry import LookedAfter, look_after

logger = logging.getLogger(__name__)

DONE, FAILED, WRONG_INPUT = 0, 1, 2
TRIES, PAUSE_S = 5, 60.0
"""How often a scheduler is asked that does not answer, and how long after one another."""


def main() -> None:
    """Look after the runs of the follow-up that the command line names, and exit."""
    from pipeline.results.dvc_cache import DvcCache
    from pipeline.schedulers.find import find_scheduler

    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    logging.getLogger("pipeline").setLevel(logging.INFO)
    folder = Path(sys.argv[1])
    scheduler = find_scheduler(folder.parents[1])
    services = SubmissionServices(DvcCache(), scheduler, Git())
    sys.exit(follow(folder, services, os.environ))


def follow(folder: Path, services: SubmissionServices, environment: Mapping[str, str]) -> int:
    """Do what a follow-up's record says and return the exit code.

    Args:
        folder: Of the record.
        services: The world outside.
        environment: Has secrets for those who are told.
    """
    follow_up = read_follow_up(folder)
    if follow_up is None:
        logger.error("%s has no record that can be read", folder)
        return WRONG_INPUT
    root = folder.parents[2]
    found, problems = _look_after(root, follow_up, services)
    ends = found.ends
    if found.living:
        told = tuple(dict.fromkeys([*follow_up.told, *(end.name for end in ends if end.remedy)]))
        following = dataclasses.replace(
            follow_up, token=new_token(), number=follow_up.number + 1, job_id=None,
            submitted=services.clock(), told=told,
            runs=_still_followed(follow_up, found),
        )  # fmt: skip
        living = {run.name for run in found.living}
        try:
            made = _hand_over(folder, following, living, services)
            logger.info("job %s follows %d jobs that go on", made.job_id, len(living))
        except (AslPipeError, OSError) as error:
            problems.append(f"no follow-up for {', '.join(sorted(living))}: {error}")
            remedy = "nobody looks after it any more: asl-pipe submit makes a follow-up"
            ends = tuple(
                dataclasses.replace(end, remedy=remedy) if end.name in living else end
                for end in ends
            )
    news = [end for end in ends if end.remedy and end.name not in follow_up.told]
    said: list[str] = []
    if news or not found.living:
        suite = "demo" if follow_up.suite == "." else Path(follow_up.suite).name
        message = message_of(str(root), suite, ends, ended=not found.living)
        said.append(message.text)
        logger.info("%s", message.text)
        notify, wrong = _notify(root)
        problems += [*wrong, *tell(message, notify, environment, services.pause)]
    for line in problems:
        logger.error("%s", line)
    write_done(folder, said, problems, services.clock())
    return FAILED if problems else DONE


def _look_after(
    root: Path, follow_up: FollowUp, services: SubmissionServices
) -> tuple[LookedAfter, list[str]]:
    """Look after the runs; a scheduler that does not answer is asked again for a while."""
    for attempt in range(TRIES):
        try:
            return look_after(root, follow_up.runs, services), []
        except SchedulerError as error:
            logger.warning("%s", error)
            if attempt == TRIES - 1:
                ends = tuple(
                    RunEnd(run.name, "UNKNOWN", run.job_id, "", "see asl-pipe status")
                    for run in follow_up.runs
                )
                return LookedAfter(ends, ()), [f"the scheduler does not answer: {error}"]
            services.pause(PAUSE_S)
    raise AssertionError


def _still_followed(follow_up: FollowUp, found: LookedAfter) -> tuple[Followed, ...]:
    """Return all runs, those that go on under their new jobs: the last message is of all."""
    living = {run.name: run for run in found.living}
    return tuple(living.get(run.name, run) for run in follow_up.runs)


def _hand_over(
    folder: Path, following: FollowUp, living: set[str], services: SubmissionServices
) -> FollowUp:
    waited = tuple(run.job_id for run in following.runs if run.name in living)
    return hand_over_follow_up(folder.parents[1], following, services.scheduler, waited)


def _notify(root: Path) -> tuple[Notify, list[str]]:
    """Return who is told: those whom cluster.yaml names now; a mistake in it, and nobody."""
    try:
        return read_cluster(root / "cluster.yaml").notify, []
    except UserError as error:
        return Notify(), [f"nobody could be told: {error}"]


if __name__ == "__main__":
    main()
