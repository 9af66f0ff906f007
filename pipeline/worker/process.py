"""What the processes of a job have in common: who they are, where, and what they run."""

import dataclasses
import json
import os
import re
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asl_core.errors import InputError, InterruptedRun, TrainingError
from asl_core.ranks import ranks_of
from asl_core.recipes.optimisation import Resources
from pipeline.config.params import load_params
from pipeline.errors import AslPipeError, UserError
from pipeline.execution.compute import set_threads
from pipeline.execution.features import shared_features
from pipeline.execution.gpus import Gpus
from pipeline.execution.inputs import find_inputs, recipe_of
from pipeline.execution.load import load_stage
from pipeline.execution.perform import StageRun
from pipeline.execution.stop_signals import StopSignals
from pipeline.jobs.folder import JobFolder
from pipeline.jobs.job import Attempt, Job, Terms
from pipeline.jobs.state import HEARTBEAT_S
from pipeline.jobs.verdict import Patience
from pipeline.project import Project
from pipeline.results.code import code_folder
from pipeline.results.documents import Document, hashes_of
from pipeline.results.port import Identity, ResultCache
from pipeline.schedulers.port import Scheduler
from pipeline.schedulers.variables import JOB_CPUS, JOB_ID, JOB_NODES, JOB_RESTARTS
from pipeline.stages.request import StageFunction, StageRequest
from pipeline.stages.table import STAGES
from pipeline.tables.place import place_of

DONE, FAILED, WRONG_INPUT, STOPPED, INTERRUPTED = 0, 1, 2, 3, 75
"""Exit codes. STOPPED: before its end, on purpose; it is none of success, for jobs that need its
result must not begin."""

SOON_S, SOON_POLL_S = 3.0, 0.2
"""How long a process waits for a message of the others; shorter than a scheduler waits to kill."""

LOST_A_PEER = re.compile(r"gloo|nccl|connection (closed|reset) by peer", re.IGNORECASE)
"""What torch says in RuntimeErrors that have no type of their own."""


@dataclass(frozen=True)
class WorkerServices:
    """The world outside, as a job needs it.

    Attributes:
        cache: Where inputs come from and results go.
        scheduler: Asked to requeue.
        load: Finds a stage's function.
        gpus: Finds this process's GPUs.
        tags: What else a run says of where it was made.
        patience: How long to wait for what other machines have written.
        heartbeat_s: Seconds between heartbeats.
        clock: Seconds since 1970.
        pause: Waits so many seconds.
    """

    cache: ResultCache
    scheduler: Scheduler
    load: Callable[[str], StageFunction] = load_stage
    gpus: Callable[[], Gpus] = Gpus
    tags: Mapping[str, str] = dataclasses.field(default_factory=dict)
    patience: Patience = dataclasses.field(default_factory=Patience)
    heartbeat_s: float = HEARTBEAT_S
    clock: Callable[[], float] = time.time
    pause: Callable[[float], None] = time.sleep


@dataclass(frozen=True)
class Place:
    """Where the scheduler has put this process.

    Attributes:
        job_id: `27`, or `27_3`.
        restart: How often the scheduler has requeued the job.
        nodes: Of the whole job.
        rank: Of this process; 0 keeps the record.
        local_rank: Of this process on its node.
        world_size: Number of processes.
    """

    job_id: str | None
    restart: int
    nodes: str
    rank: int
    local_rank: int
    world_size: int

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Place":
        """Read it from the environment that the scheduler gives a job's processes."""
        ranks = ranks_of(environment)
        return cls(
            job_id=environment.get(JOB_ID),
            restart=int(environment.get(JOB_RESTARTS) or 0),
            nodes=environment.get(JOB_NODES) or socket.gethostname(),
            rank=ranks.rank,
            local_rank=ranks.local_rank,
            world_size=ranks.world_size,
        )


class JobFailure(AslPipeError):
    """Raised when a job must not go on; its message is all there is to say."""


def exit_code_of(error: BaseException | None) -> int:
    """Return the exit code of a process that ends with an error, or with none."""
    match error:
        case None:
            return DONE
        case InterruptedRun() | KeyboardInterrupt():
            return INTERRUPTED
        case UserError() | InputError():
            return WRONG_INPUT
        case _:
            return FAILED


class JobProcess(ABC):
    """One process of a job.

    Args:
        paths: The job's record.
        job: What it is to make.
        attempt: As which it was started.
        place: Where it was started.
        services: The world outside.
        signals: What it was asked.
    """

    def __init__(
        self,
        paths: JobFolder,
        job: Job,
        attempt: Attempt,
        place: Place,
        services: WorkerServices,
        signals: StopSignals,
    ) -> None:
        self.paths, self.job, self.attempt, self.place = paths, job, attempt, place
        self.services, self.signals = services, signals
        self.root = paths.scratch.parent
        self.start = {"token": attempt.token, "restart": place.restart}

    def load(self, stage: str) -> StageFunction:
        """Return a stage's function.

        Of the processes that a signal stops one ends first; what the others are just computing
        together fails then, and that is no failure of theirs.
        """
        function = self.services.load(stage)

        def call(request: StageRequest[object]) -> dict[str, float]:
            try:
                return function(request)
            except (RuntimeError, TrainingError) as error:
                self.signals.handler.quiet = True
                if not (_has_lost_a_peer(error) and self.soon(self.is_being_stopped)):
                    raise
                raise InterruptedRun("another process of the job stopped on a signal") from error

        return function if self.place.world_size == 1 else call

    @abstractmethod
    def is_being_stopped(self) -> bool:
        """Say whether the job's processes are ending because of a signal."""

    def soon(self, condition: Callable[[], bool]) -> bool:
        """Say whether a condition holds within a few seconds."""
        for _ in range(round(SOON_S / SOON_POLL_S)):
            if condition():
                return True
            self.services.pause(SOON_POLL_S)
        return condition()

    def read_own(self, path: Path) -> dict[str, Any]:
        """Return what a process of this start has left in a file; nothing if it is of another."""
        content = read_json(path)
        is_own = {name: content.get(name) for name in self.start} == self.start
        return content if is_own else {}

    def stopped_peers(self) -> list[dict[str, Any]]:
        """Return what processes other than the first have said as they obeyed a signal."""
        ranks = range(1, self.place.world_size)
        found = (self.read_own(self.paths.rank_stopped(rank)) for rank in ranks)
        return [said for said in found if said]

    def stage_run(self, fingerprint: str, document: Document) -> StageRun:
        """Return the run: frozen parameters, inputs laid out for this job, its own scratch."""
        params = load_params(self.paths.params)
        recipe = recipe_of(params, self.job.stage, self.job.key)
        resources = granted(self.attempt.terms, os.environ)
        set_threads(resources, self.services.gpus())
        project = Project(self.paths.inputs, self.paths.inputs)
        inputs = find_inputs(project, self.job.stage, self.job.key, recipe)
        if "data_root" in inputs:  # said by the environment of whoever submitted the job
            inputs["data_root"] = Path(self.attempt.terms.data_root)
        code = code_folder(self.paths.scratch, self.attempt.terms.snapshot)
        code_text = (code / STAGES[self.job.stage].code_path(recipe)).read_text("utf-8")
        digests = {path: str(hashed["md5"]) for path, hashed in
                   hashes_of(document.get("deps", [])).items()}  # fmt: skip
        scratch = JobFolder.of(self.paths.scratch, fingerprint)
        return StageRun(
            stage=self.job.stage, key=self.job.key, suite=params.suite, scale=params.scale,
            place=place_of(params, self.job.stage, self.job.key), recipe=recipe, inputs=inputs,
            resources=resources, identity=Identity(fingerprint, digests, code_text), code_root=code,
            job=scratch, features=shared_features(scratch, self.job.stage, code),
        )  # fmt: skip


def granted(terms: Terms, environment: Mapping[str, str]) -> Resources:
    """Return what a process may use of what its job was given.

    A job that asked for GPUs computes on them, or fails: where a driver is broken, days would pass
    on the CPU without a word.
    """
    resources = Resources(**terms.resources)
    if terms.asked.get("gpus") and resources.device == "auto":
        resources = dataclasses.replace(resources, device="cuda")
    cpus = environment.get(JOB_CPUS)
    if resources.device == "cuda" and cpus and resources.threads is None:
        threads = max(1, int(cpus) - resources.num_workers)
        resources = dataclasses.replace(resources, threads=threads)
    return resources


def _has_lost_a_peer(error: Exception) -> bool:
    """Say whether an error is of a collective operation whose other side is gone."""
    kinds = type(error.__cause__ or error).__mro__
    known = any(kind.__name__ == "DistError" for kind in kinds)  # torch's, its base
    return known or (isinstance(error, RuntimeError) and bool(LOST_A_PEER.search(str(error))))


def read_json(path: Path) -> dict[str, Any]:
    """Return what a file says, nothing where it is not there or not readable."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    except (OSError, ValueError):
        return {}
