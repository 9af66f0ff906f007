"""What `asl-pipe run` does where the run was handed to the scheduler: adopt, wait, or refuse.

`dvc repro` comes here only where its run-cache has no result. A job that lives answers with exit
code 75, and DVC leaves dvc.lock as it is; with ASL_WAIT=1 the command stays until the job has
ended. Its own death changes nothing: the job does not know of it.
"""

import logging
from dataclasses import dataclass

from pipeline.errors import AslPipeError, NotFinishedError
from pipeline.jobs.folder import PROVISIONAL, JobFolder
from pipeline.jobs.job import read_job
from pipeline.jobs.state import read_state
from pipeline.jobs.verdict import Verdict
from pipeline.project import Project
from pipeline.results.documents import Hashes
from pipeline.results.port import Identity
from pipeline.submission.job_reports import JobReport, Queue, report_on
from pipeline.submission.plan import SubmissionServices
from pipeline.submission.put_back import put_back_results

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

    services: SubmissionServices
    wait: bool = False
    here: bool = False

    def result_of(self, project: Project, name: str, identity: Identity) -> Hashes | None:
        """Return the outputs that a job has made for this identity; None where there is no job.

        Raises:
            NotFinishedError: A job lives, or it is not known what became of it.
            AslPipeError: The job failed or was lost.
        """
        put_back_results(project.home, self.services.cache)
        report = self._find(project, name, identity)
        if report is None:
            return None
        if self.wait:
            report = self._wait_for_end(project, name, report)
        if report.verdict is Verdict.SUCCEEDED and report.state is not None:
            # else made from what the inputs were; nothing of it is for this identity
            return report.state.manifest if _is_for(report, identity) else None
        if report.verdict in (*_LIVES, Verdict.BLOCKED):
            raise NotFinishedError(
                f"{name}: {describe(report)}; see asl-pipe status, or wait with {WAIT}=1 dvc repro"
            )
        if self.here:
            return None
        if report.verdict is Verdict.STOPPED:
            raise AslPipeError(
                f"{name}: {describe(report)}; it has no result on purpose: `dvc repro "
                "--keep-going` leaves it out, without `halving` in suite.yaml asl-pipe submit goes "
                f"on with it, {HERE}=1 dvc repro runs it in this process"
            )
        raise AslPipeError(
            f"{name}: {describe(report)}; see asl-pipe logs {name}; asl-pipe submit resumes it "
            f"from its checkpoint, {HERE}=1 dvc repro runs it in this process"
        )

    def _wait_for_end(self, project: Project, name: str, report: JobReport) -> JobReport:
        """Watch a job until it has ended, or there has been no sign of it for a while.

        The queue shows no jobs of other users; as long as such a job says itself that it runs, it
        is waited for too.

        Raises:
            NotFinishedError: Nobody knows what became of it.
        """
        services = self.services
        heard, said, pause = services.clock(), -LINE_S, FIRST_POLL_S
        while report.verdict in _LIVES:
            now = services.clock()
            if report.verdict is not Verdict.UNKNOWN:
                heard = now
            elif report.own_state is not None:
                heard = max(heard, report.own_state.heartbeat)
            if now - heard > services.patience.settling_s:
                raise NotFinishedError(
                    f"{name}: {describe(report)}; no sign of it for "
                    f"{now - heard:.0f} s, so waiting ends"
                )
            if now - said >= LINE_S:
                logger.info("%s: %s", name, describe(report))
                said = now
            services.pause(pause)
            pause = min(2 * pause, POLL_S)
            report = self._look(project, report.paths)
        return report

    def _find(self, project: Project, name: str, identity: Identity) -> JobReport | None:
        """Return the job of a run that matters most: its result, what lives, what has ended.

        There may be one under the run's key and others from the time before its inputs were
        there, submitted from any suite that shares the run.
        """
        found = []
        own = JobFolder.of(project.scratch, identity.fingerprint)
        if read_job(own) is not None:
            found.append(own)
        earlier: list[tuple[JobFolder, str]] = []
        for folder in sorted((project.scratch / "jobs").glob(f"{PROVISIONAL}*")):
            paths = JobFolder(folder)
            job = read_job(paths)
            if job is not None and job.name == name:
                earlier.append((paths, job.recipe))
        if earlier:
            recipe = self.services.cache.survey(project.suite, [name])[name].recipe
            found += [
                paths
                for paths, known in earlier
                if known == recipe or _works_on(paths, identity.fingerprint)
            ]
        if not found:
            return None
        queue = Queue(self.services.scheduler)
        reports = [self._look(project, paths, queue) for paths in found]
        return min(reports, key=lambda report: _rank(report, identity))

    def _look(self, project: Project, paths: JobFolder, queue: Queue | None = None) -> JobReport:
        services = self.services
        queue = queue or Queue(services.scheduler)
        report = report_on(
            paths, project.root, queue, services.cache, services.patience, services.clock()
        )
        if report is None:
            raise NotFinishedError(f"{paths.job} disappeared; run the same command again")
        return report


_LIVES = (Verdict.ACTIVE, Verdict.SETTLING, Verdict.UNKNOWN)


def _works_on(paths: JobFolder, fingerprint: str) -> bool:
    state = read_state(paths)
    return state is not None and state.fingerprint == fingerprint


def _is_for(report: JobReport, identity: Identity) -> bool:
    """Say whether what a job has made was made from what an identity stands for."""
    return report.state is not None and report.state.fingerprint in (None, identity.fingerprint)


def _rank(report: JobReport, identity: Identity) -> int:
    """Order the jobs of one run: a result of this identity first, then what may become one."""
    if report.verdict is Verdict.SUCCEEDED:
        return 0 if _is_for(report, identity) else 4
    if report.verdict in _LIVES:
        return 1
    return 2 if report.verdict is Verdict.BLOCKED else 3


def describe(report: JobReport) -> str:
    """Return what is known of a job in one line: `job 27 is ACTIVE (RUNNING), step 40 of 184`."""
    job = f"job {report.job_id}" if report.job_id is not None else "its job"
    detail = f" ({report.finding.detail})" if report.finding.detail else ""
    state = report.own_state
    step = ""
    if state is not None and state.step is not None:
        step = f", step {state.step}" + (f" of {state.total_steps}" if state.total_steps else "")
    return f"{job} is {report.verdict}{detail}{step}"
