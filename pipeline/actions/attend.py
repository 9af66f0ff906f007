"""What `asl-pipe run` does where the run was handed to the scheduler: adopt, wait, or refuse.

`dvc repro` comes here only where its run-cache has no result. A job that lives answers with exit
code 75, and DVC leaves dvc.lock as it is; with ASL_WAIT=1 the command stays until the job has
ended. Its own death changes nothing: the job does not know of it.
"""

import logging
from dataclasses import dataclass

from pipeline.actions.plan import Services, relative_suite
from pipeline.actions.states import JobReport, Queue, report_on
from pipeline.errors import AslPipeError, NotFinishedError
from pipeline.jobs.documents import Hashes
from pipeline.jobs.job import PROVISIONAL, read_job
from pipeline.jobs.layout import RecordPaths
from pipeline.jobs.verdict import Verdict
from pipeline.ports import Identity
from pipeline.project import Project

logger = logging.getLogger(__name__)

WAIT = "ASL_WAIT"
HERE = "ASL_HERE"
"""Environment variables, for `dvc repro` hands no options on: wait for jobs; run in this process
what a job has failed to do."""

FIRST_POLL_S, POLL_S = 0.5, 5.0
LINE_S = 60.0
"""How often a line is printed while nothing changes, in seconds."""


@dataclass(frozen=True)
class Attendance:
    """Attends to the jobs of a project.

    Attributes:
        services: Queue, cache, clock.
        wait: Stay until a job has ended.
        here: A job that failed or was lost is no reason not to run in this process.
    """

    services: Services
    wait: bool = False
    here: bool = False

    def result_of(self, project: Project, name: str, identity: Identity) -> Hashes | None:
        """Return the outputs that a job has made for this identity; None where there is no job.

        Raises:
            NotFinishedError: A job lives, or it is not known what became of it.
            AslPipeError: The job failed or was lost.
        """
        paths = self._find(project, name, identity.fingerprint)
        if paths is None:
            return None
        report = self._look(project, paths)
        said, pause = -LINE_S, FIRST_POLL_S
        while self.wait and report.verdict in _LIVES:
            if self.services.clock() - said >= LINE_S:
                logger.info("%s: %s", name, describe(report))
                said = self.services.clock()
            self.services.pause(pause)
            pause = min(2 * pause, POLL_S)
            report = self._look(project, paths)
        if report.verdict is Verdict.SUCCEEDED and report.state is not None:
            if report.state.fingerprint not in (None, identity.fingerprint):
                return None  # made from what the inputs were; nothing of it is for this identity
            return report.state.manifest
        if report.verdict in (*_LIVES, Verdict.BLOCKED):
            raise NotFinishedError(
                f"{name}: {describe(report)}; asl-pipe status shows it, {WAIT}=1 dvc repro waits"
            )
        if self.here:
            return None
        raise AslPipeError(
            f"{name}: {describe(report)}; asl-pipe logs {name} shows why, asl-pipe submit goes on "
            f"from its checkpoint, {HERE}=1 dvc repro runs it in this process"
        )

    def _find(self, project: Project, name: str, fingerprint: str) -> RecordPaths | None:
        """Return the record of a run: under its key, or under what it was before its inputs."""
        paths = RecordPaths.of(project.scratch, fingerprint)
        if read_job(paths) is not None:
            return paths
        suite = relative_suite(project)
        candidates = []
        for folder in (project.scratch / "jobs").glob(f"{PROVISIONAL}*"):
            job = read_job(RecordPaths(folder))
            if job is not None and (job.name, job.suite) == (name, suite):
                candidates.append((RecordPaths(folder), job.recipe))
        if not candidates:
            return None
        recipe = self.services.cache.survey(project.suite, [name])[name].recipe
        return next((paths for paths, known in candidates if known == recipe), None)

    def _look(self, project: Project, paths: RecordPaths) -> JobReport:
        services = self.services
        report = report_on(
            paths, project.root, Queue(services.scheduler), services.cache, services.patience,
            services.clock(),
        )  # fmt: skip
        if report is None:
            raise NotFinishedError(f"{paths.job} went away; run the same command again")
        return report


_LIVES = (Verdict.ACTIVE, Verdict.SETTLING, Verdict.UNKNOWN)


def describe(report: JobReport) -> str:
    """Return what is known of a job in one line: `job 27 is ACTIVE (RUNNING), step 40 of 184`."""
    job = f"job {report.job_id}" if report.job_id is not None else "its job"
    detail = f" ({report.finding.detail})" if report.finding.detail else ""
    state = report.own_state
    step = ""
    if state is not None and state.step is not None:
        step = f", step {state.step}" + (f" of {state.total_steps}" if state.total_steps else "")
    return f"{job} is {report.verdict}{detail}{step}"
