"""Where a trial runs: in a process here, or in a job, as the stage itself would."""

import contextlib
import dataclasses
import os
import shlex
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipeline.config.cluster import load_job_request, load_resources
from pipeline.config.container import PYXIS
from pipeline.config.job_resources import JobResources
from pipeline.config.schedulers import VARIABLE
from pipeline.execution.gpus import find_gpus
from pipeline.jobs.container import (
    folders_inside,
    launch_command,
    launch_setup,
    with_folders,
)
from pipeline.project import Project, data_root
from pipeline.rehearsal.machine import Machine
from pipeline.rehearsal.trial import OUTCOME
from pipeline.results.dvc_folders import dvc_folders
from pipeline.schedulers.find import find_scheduler
from pipeline.schedulers.port import BatchJob, NoSchedulerError, Scheduler, SchedulerError
from pipeline.stages.table import key_of

_MODULE = "pipeline.rehearsal.trial"
_MINUTES = 30
"""Limit of a trial's job: also where the stage's own is longer, or its partition's."""
_POLL_S, _ASK_EVERY = 1.0, 5
_GRACE_S = 30.0
"""A file that a node has written shows on another one after a while."""


class Launcher(Protocol):
    """Runs trials."""

    def machine(self, stage: str, key: str) -> Machine:
        """Return what a run of a stage would run on."""
        ...

    def run(self, stage: str, name: str, folder: Path) -> int | None:
        """Run the trial of a folder; return its exit code, None where nobody knows it."""
        ...


@dataclass(frozen=True)
class Here:
    """A process of this machine, for each trial a new one: its end frees all memory."""

    project: Project
    has_gpu: bool

    def machine(self, stage: str, key: str) -> Machine:
        """Return this machine."""
        resources = load_resources(self.project.cluster_file, stage, key)
        return Machine(resources, processes=1, gpus=int(self.has_gpu and resources.device != "cpu"))

    def run(self, stage: str, name: str, folder: Path) -> int | None:
        """Run it and wait."""
        command = [sys.executable, "-m", _MODULE, str(folder)]
        with (folder / "log.txt").open("w") as log:
            return subprocess.run(
                command, stdout=log, stderr=subprocess.STDOUT, check=False, cwd=self.project.root
            ).returncode


@dataclass(frozen=True)
class InJobs:
    """A job for each trial, with what cluster.yaml asks for the stage and a short time limit."""

    project: Project
    scheduler: Scheduler

    def machine(self, stage: str, key: str) -> Machine:
        """Return what the run's job gets."""
        wanted = load_job_request(self.project.cluster_file, stage, key)
        asked = wanted.asked
        return Machine(
            wanted.resources, processes=asked.nodes * asked.tasks_per_node,
            gpus=asked.nodes * asked.gpus,
        )  # fmt: skip

    def run(self, stage: str, name: str, folder: Path) -> int | None:
        """Hand it over and wait until it has ended; cancelled if this process is interrupted."""
        wanted = load_job_request(self.project.cluster_file, stage, key_of(name))
        (folder / "log").mkdir(exist_ok=True)
        kept = "${PYTHONPATH:+" + os.pathsep + "$PYTHONPATH}"
        job = BatchJob(
            name=f"rehearse {name}",
            folder=folder,
            comment=f"asl-rehearsal:{uuid.uuid4().hex[:8]}",
            command=launch_command(wanted.asked, *self._places, _MODULE, str(folder)),
            resources=dataclasses.replace(self._seen(wanted.asked), time=_MINUTES, warning=None),
            setup=(
                *wanted.asked.setup_lines(),
                f"export PYTHONPATH={shlex.quote(str(self.project.root))}{kept}",
                f"export {VARIABLE}={shlex.quote(wanted.scheduler)}",
                *launch_setup(wanted.asked, *self._places),
            ),
        )
        (job_id,) = self.scheduler.submit([job])
        try:
            self._wait(job_id, folder)
        except BaseException:  # Ctrl-C and SIGTERM above all: nobody would wait for it any more
            with contextlib.suppress(SchedulerError):
                self.scheduler.cancel([job_id])
            raise
        return None

    @property
    def _places(self) -> tuple[Path, str, Path]:
        """The scratch, the data and the code that a trial's job uses."""
        return self.project.scratch, str(data_root(self.project)), self.project.root

    def _seen(self, asked: JobResources) -> JobResources:
        """Return what is asked for, with the folders that the scheduler mounts into a container."""
        if asked.container is None or asked.container.runtime != PYXIS:
            return asked
        scratch, data, root = self._places
        return with_folders(asked, folders_inside(scratch, data, dvc_folders(root), os.environ))

    def _wait(self, job_id: str, folder: Path) -> None:
        asked = 0
        ended: float | None = None
        while not (folder / OUTCOME).exists():
            time.sleep(_POLL_S)
            asked += 1
            if ended is None and asked % _ASK_EVERY == 0 and self._has_ended(job_id):
                ended = time.monotonic()
            if ended is not None and time.monotonic() - ended > _GRACE_S:
                return

    def _has_ended(self, job_id: str) -> bool:
        try:
            jobs = {job.job_id: job for job in self.scheduler.queue()}
        except SchedulerError:
            return False  # unknown is not ended
        return job_id not in jobs or jobs[job_id].has_ended


def find_launcher(project: Project, here: bool) -> Launcher:
    """Return where a project's stages run: in jobs where there is a scheduler, else here.

    Raises:
        SchedulerError: There is one, and it cannot be asked.
    """
    if not here:
        scheduler = find_scheduler(project.scratch)
        try:
            scheduler.queue()
            return InJobs(project, scheduler)
        except NoSchedulerError:
            pass
    return Here(project, has_gpu=bool(find_gpus().uuids))
