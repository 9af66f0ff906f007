"""What the scheduler starts in every process of a job: `-m pipeline.runner FOLDER TOKEN`.

Runs from the code that was frozen at submission. Reads the job's record, DVC's cache and nothing
of the workspace; writes under `.asl/jobs` and, at the end, DVC's caches. The first process keeps
the record; the others compute.

Exit codes: 0 succeeded, or handed over to a new attempt; 1 failed; 2 the input is wrong;
75 interrupted, or another start of the job has taken over.
"""

import contextlib
import dataclasses
import json
import logging
import os
import shutil
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from asl_core.engine.records import Journal, redact
from asl_core.errors import InputError, InterruptedRun
from asl_core.recipes.optimisation import Resources
from pipeline.actions.hand_over import hand_over, pack
from pipeline.actions.inputs import find_inputs, recipe_of
from pipeline.actions.perform import (
    StageRun,
    help_perform,
    load_stage,
    perform,
    set_threads,
    write_metrics,
)
from pipeline.actions.stop_signals import StopSignals, stop_signals, unstoppable
from pipeline.actions.upstream import UpstreamPending, resolve
from pipeline.config.params import load_params
from pipeline.errors import AslPipeError, UserError
from pipeline.jobs.claim import claim
from pipeline.jobs.documents import Document, Hashes, hashes_of
from pipeline.jobs.fence import Fence, SupersededError
from pipeline.jobs.job import PROVISIONAL, Attempt, Job, read_attempts, read_job
from pipeline.jobs.layout import JobPaths, OutputPaths, RecordPaths
from pipeline.jobs.progress import ProgressReader
from pipeline.jobs.record import write_json
from pipeline.jobs.reporter import Reporter, as_fields
from pipeline.jobs.snapshot import code_folder
from pipeline.jobs.state import ERROR_CHARACTERS, HEARTBEAT_S, JobState, Status, read_state
from pipeline.jobs.verdict import Patience
from pipeline.ports import Filing, Identity, ResultCache, Scheduler, SchedulerError
from pipeline.project import Project
from pipeline.stages.request import StageFunction

logger = logging.getLogger(__name__)

DONE, FAILED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 75

ASKS_TO_GO_ON = {"SIGUSR1", "SIGUSR2"}
"""The scheduler's warning before a time limit or a preemption. SIGTERM alone is its own way to
requeue a job, or somebody's wish to end it."""

READY_S = 600.0
"""For so long the other processes wait for the first one to lay out the inputs."""


@dataclass(frozen=True)
class Services:
    """The world outside, as a job needs it.

    Attributes:
        cache: Where inputs come from and results go.
        scheduler: Asked to requeue.
        load: Finds a stage's function.
        gpus: UUIDs of the GPUs and the driver's version.
        patience: How long to wait for what other machines have written.
        heartbeat_s: Seconds between heartbeats.
        clock: Seconds since 1970.
        pause: Waits so many seconds.
    """

    cache: ResultCache
    scheduler: Scheduler
    load: Callable[[str], StageFunction] = load_stage
    gpus: Callable[[], tuple[tuple[str, ...], str | None]] = lambda: ((), None)
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
        """Read it from the environment of a job step."""
        array, task = (environment.get(f"SLURM_ARRAY_{n}_ID") for n in ("JOB", "TASK"))
        return cls(
            job_id=f"{array}_{task}" if array and task else environment.get("SLURM_JOB_ID"),
            restart=int(environment.get("SLURM_RESTART_COUNT") or 0),
            nodes=environment.get("SLURM_JOB_NODELIST") or socket.gethostname(),
            rank=int(environment.get("RANK") or 0),
            local_rank=int(environment.get("LOCAL_RANK") or 0),
            world_size=int(environment.get("WORLD_SIZE") or 1),
        )


class JobFailure(AslPipeError):
    """Raised when a job must not go on; its message is all there is to say."""


def main() -> None:
    """Run the job that the command line names, and exit."""
    from pipeline.adapters.dvc_cache import DvcCache
    from pipeline.adapters.nvidia import find_gpus
    from pipeline.adapters.schedulers import find_scheduler

    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    for package in ("asl_core", "pipeline"):
        logging.getLogger(package).setLevel(logging.INFO)
    folder, token = sys.argv[1:3]
    services = Services(cache=DvcCache(), scheduler=find_scheduler(), gpus=find_gpus)
    sys.exit(run_job(RecordPaths(Path(folder)), token, services, os.environ))


def run_job(
    paths: RecordPaths, token: str, services: Services, environment: Mapping[str, str]
) -> int:
    """Run one process of an attempt and return its exit code.

    Args:
        paths: The job's record.
        token: Of the attempt.
        services: The world outside.
        environment: Of the process.
    """
    job, place = read_job(paths), Place.of(environment)
    attempt = next((a for a in read_attempts(paths) if a.token == token), None)
    if job is None or attempt is None:
        logger.error("%s has no attempt %s", paths.folder, token)
        return WRONG_INPUT
    with stop_signals() as signals:
        if place.rank > 0:
            return _Helper(paths, job, attempt, place, services).run()
        return _Lead(paths, job, attempt, place, services, signals).run()


class _Process:
    """What all processes of a job have in common."""

    def __init__(
        self, paths: RecordPaths, job: Job, attempt: Attempt, place: Place, services: Services
    ) -> None:
        self.paths, self.job, self.attempt, self.place = paths, job, attempt, place
        self.services = services
        self.root = paths.scratch.parent
        self.start = {"token": attempt.token, "restart": place.restart}

    def stage_run(self, fingerprint: str, document: Document) -> StageRun:
        """Return the run: frozen parameters, inputs laid out for this job, its own scratch."""
        os.environ["ASL_DATA"] = self.attempt.terms.data_root
        params = load_params(self.paths.params)
        recipe = recipe_of(params, self.job.stage, self.job.key)
        resources = Resources(**self.attempt.terms.resources)
        cpus = os.environ.get("SLURM_CPUS_PER_TASK")
        if cpus and resources.threads is None:
            threads = max(1, int(cpus) - resources.num_workers)
            resources = dataclasses.replace(resources, threads=threads)
        set_threads(resources)
        project = Project(self.paths.inputs, self.paths.inputs)
        inputs = {path: str(hashed["md5"]) for path, hashed in
                  hashes_of(document.get("deps", [])).items()}  # fmt: skip
        return StageRun(
            stage=self.job.stage, key=self.job.key, params=params, recipe=recipe,
            inputs=find_inputs(project, self.job.stage, self.job.key, recipe),
            resources=resources, identity=Identity(fingerprint, inputs),
            job=JobPaths.of(self.paths.scratch, fingerprint),
        )  # fmt: skip


class _Lead(_Process):
    """The first process: it keeps the record, publishes, and decides how it goes on."""

    def __init__(
        self,
        paths: RecordPaths,
        job: Job,
        attempt: Attempt,
        place: Place,
        services: Services,
        signals: StopSignals,
    ) -> None:
        super().__init__(paths, job, attempt, place, services)
        self.signals = signals
        self.fences: list[Fence] = []
        self.restarts = attempt.restarts + place.restart
        self.work: JobPaths | None = None
        self.progress: ProgressReader | None = None
        now = services.clock()
        uuids, driver = services.gpus()
        state = JobState(
            status=Status.RUNNING, attempt=attempt.number, token=attempt.token,
            job_id=place.job_id, restarts=self.restarts, heartbeat=now, started=now,
            nodes=place.nodes, gpus=uuids, driver=driver, pid=os.getpid(),
        )  # fmt: skip
        self.reporter = Reporter(paths, state, self.check_fences, services.clock)

    def run(self) -> int:
        """Run to the end, whatever the end is."""
        try:
            return self._run()
        except SupersededError as error:
            logger.warning("%s", error)
            return INTERRUPTED
        except UpstreamPending as error:
            return self._wait_for(error)
        except (InterruptedRun, KeyboardInterrupt) as error:
            return self._interrupted(error)
        except BaseException as error:
            return self._failed(error)
        finally:
            self.reporter.end()
            self.reporter.give_back()

    def check_fences(self) -> None:
        """Raise SupersededError when a newer start has taken over."""
        for fence in self.fences:
            fence.check()

    def _run(self) -> int:
        paths, services = self.paths, self.services
        self._fence(paths.fence)
        self.reporter.begin()
        self.reporter.keep_beating(
            self._look, self._look_at_peers, _ask_to_stop, services.heartbeat_s
        )
        limit = self.attempt.terms.slurm.get("max_restarts")
        if limit is not None and self.restarts > limit:
            raise JobFailure(f"restarted {self.restarts} times; max_restarts is {limit}")
        document = resolve(self.job, self.attempt.terms.upstream, self.paths, services)
        fingerprint = services.cache.key(document)
        self.work = JobPaths.of(paths.scratch, fingerprint)
        self.reporter.update(fingerprint=fingerprint)
        found = None if self.attempt.terms.force else services.cache.find(self.root, fingerprint)
        if found is not None:
            logger.info("%s: the result is there already", self.job.name)
            self._tell_peers(fingerprint, done=True)
            return self._succeeded(found)
        if self.work.folder != paths.folder:
            self._fence(self.work.fence)
        self._lay_out_inputs(document)
        self._tell_peers(fingerprint, done=False)
        self.progress = ProgressReader(self.work.journal)
        run = self.stage_run(fingerprint, document)
        # a folder of its own: what a given-up start still writes must not get between
        out = self.work.folder / f"out.{self.fences[0].start}"
        run = dataclasses.replace(
            run, tags=self._tags(), before_checkpoint=self.check_fences, out=out, locks=False
        )
        record = perform(run, services.load, self.check_fences)
        with unstoppable():
            write_metrics(self.work.metrics, run, record)
            manifest = self._file(document, out)
            self._keep_only(out)
            return self._succeeded(manifest)

    def _fence(self, file: Path) -> None:
        self.fences.append(Fence.put_up(file, self.paths, self.attempt.number, self.place.restart))

    def _lay_out_inputs(self, document: Document) -> None:
        """Link what the stage reads from DVC's cache, anew for each start."""
        shutil.rmtree(self.paths.inputs, ignore_errors=True)
        code = code_folder(self.paths.scratch, self.attempt.terms.snapshot)
        hashes: dict[str, Mapping[str, object]] = {
            path: hashed
            for path, hashed in {
                **hashes_of(document["deps"]),
                **self.attempt.terms.external,
            }.items()
            if not (code / path).exists()
        }
        self.paths.inputs.mkdir(parents=True)
        self.services.cache.link(self.root, hashes, self.paths.inputs)
        for path, fingerprint in self.attempt.terms.upstream.items():
            # whose metrics lie beside its outputs is asked by their fingerprint
            beside = self.paths.inputs / f"{path}.json"
            if not beside.exists():
                write_json(beside, {"fingerprint": self._final_fingerprint(fingerprint)})

    def _final_fingerprint(self, fingerprint: str) -> str:
        state = read_state(RecordPaths.of(self.paths.scratch, fingerprint))
        return (state.fingerprint if state else None) or fingerprint

    def _keep_only(self, out: Path) -> None:
        """Leave the outputs where MLflow finds their pictures; remove what other starts left."""
        assert self.work is not None
        shutil.rmtree(self.work.out, ignore_errors=True)
        with contextlib.suppress(OSError):
            out.rename(self.work.out)
        for left in self.work.folder.glob("out.*"):
            shutil.rmtree(left, ignore_errors=True)

    def _file(self, document: Document, out: Path) -> Hashes:
        assert self.work is not None
        outputs = OutputPaths.of(Path(), self.job.stage, self.job.key)
        places = {outputs.folder.as_posix(): out}
        if outputs.metrics is not None:
            places[outputs.metrics.as_posix()] = self.work.metrics
        self.check_fences()
        return self.services.cache.file(
            Filing(
                root=self.root,
                suite=self.root / self.job.suite,
                document=document,
                outputs=places,
                code=code_folder(self.paths.scratch, self.attempt.terms.snapshot),
                inputs=self.paths.inputs,
                params=self.paths.params,
                scratch=self.paths.folder,
            )
        )

    def _tags(self) -> dict[str, str]:
        state = self.reporter.state
        return {
            **self.attempt.terms.code,
            "attempt": str(self.attempt.number),
            "restarts": str(self.restarts),
            "snapshot": self.attempt.terms.snapshot,
            "record": self.paths.fingerprint,
            "slurm.job_id": str(self.place.job_id),
            "slurm.nodes": self.place.nodes,
            "gpu.uuids": ",".join(state.gpus) or "none",
            "gpu.driver": state.driver or "none",
        }

    # How it ends

    def _succeeded(self, manifest: Hashes) -> int:
        now = self.services.clock()
        self.reporter.update(
            status=Status.SUCCEEDED, ended=now, exit_code=DONE, error=None,
            manifest={path: dict(hashed) for path, hashed in manifest.items()}, **self._look(),
        )  # fmt: skip
        shutil.rmtree(self.paths.inputs, ignore_errors=True)
        if self.work is not None:
            shutil.rmtree(self.work.checkpoints, ignore_errors=True)
        return DONE

    def _failed(self, error: BaseException) -> int:
        """Write down why; an error that is meant for people is one line, others a traceback."""
        if isinstance(error, AslPipeError | InputError):
            text = str(error)
        else:
            text = "".join(traceback.format_exception(error))
        logger.error("%s", text)
        code = WRONG_INPUT if isinstance(error, UserError | InputError) else FAILED
        return self._end_as_failed(text, code)

    def _end_as_failed(self, text: str, code: int) -> int:
        try:
            self.reporter.update(
                status=Status.FAILED, ended=self.services.clock(), exit_code=code,
                error=redact(text)[-ERROR_CHARACTERS:], **self._look(),
            )  # fmt: skip
        except (OSError, SupersededError) as error:
            logger.error("the record could not be written: %s", error)
        return code

    def _interrupted(self, error: BaseException) -> int:
        """Keep what is there and see to it that the work goes on, if that is what was asked."""
        names = self.signals.names
        logger.warning("%s: interrupted (%s)", self.job.name, error or ", ".join(names))
        limit = self.attempt.terms.slurm.get("max_restarts")
        goes_on = bool(ASKS_TO_GO_ON & set(names))
        if goes_on and limit is not None and self.restarts >= limit:
            text = (
                f"interrupted by {'+'.join(names)} after {limit} restarts; max_restarts is {limit}"
            )
            return self._end_as_failed(text, FAILED)
        try:
            self.reporter.update(
                status=Status.INTERRUPTED, ended=self.services.clock(), exit_code=INTERRUPTED,
                stopped_by=names, **self._look(),
            )  # fmt: skip
        except SupersededError as superseded:
            logger.warning("%s", superseded)
            return INTERRUPTED
        return self._go_on_later() if goes_on else INTERRUPTED

    def _go_on_later(self) -> int:
        """Requeue this job; where that is forbidden, hand over a new attempt."""
        self.reporter.end()  # nothing may be written from the moment the next start is possible
        job_id = self.place.job_id
        if self.attempt.terms.slurm.get("requeue") == "allowed" and job_id is not None:
            try:
                self.services.scheduler.requeue(job_id)
            except SchedulerError as error:
                if self._waits_already(job_id):
                    return INTERRUPTED
                logger.warning("not requeued (%s); submitting it anew", error)
            else:
                logger.info("%s: requeued as %s", self.job.name, job_id)
                return INTERRUPTED
        return self._hand_over_again(after=())

    def _waits_already(self, job_id: str) -> bool:
        with contextlib.suppress(SchedulerError):
            queue = self.services.scheduler.queue()
            return any(j.job_id == job_id and j.state in ("PENDING", "REQUEUED") for j in queue)
        return False

    def _wait_for(self, pending: UpstreamPending) -> int:
        """Begin when what this job needs is there: its maker has become another job meanwhile."""
        logger.info("%s", pending)
        with contextlib.suppress(SupersededError):
            self.reporter.update(status=Status.INTERRUPTED, ended=self.services.clock())
            self.reporter.end()
            return self._hand_over_again(after=pending.job_ids)
        return INTERRUPTED

    def _hand_over_again(self, after: tuple[str, ...]) -> int:
        name = PROVISIONAL + self.job.recipe
        held = claim(self.paths.folder.parent, name, self.services.clock())
        if held is None:
            logger.warning("somebody submits %s at this moment", self.job.name)
            return INTERRUPTED
        try:
            parcel = pack(
                self.paths, self.job, self.attempt.terms, restarts=self.restarts + 1, after=after,
                clock=self.services.clock,
            )  # fmt: skip
            attempts, error = hand_over(
                [parcel], self.services.scheduler, self.services.patience, self.services.pause,
                self.services.clock,
            )  # fmt: skip
        finally:
            held.release()
        if error is not None and attempts[0].job_id is None:
            logger.error("%s could not be submitted anew: %s", self.job.name, error)
            return INTERRUPTED
        logger.info("%s: goes on as job %s", self.job.name, attempts[0].job_id)
        return DONE

    # While it runs

    def _look(self) -> dict[str, object]:
        """Return what a heartbeat says besides that it beats."""
        return {} if self.progress is None else as_fields(self.progress.read())

    def _tell_peers(self, fingerprint: str, *, done: bool) -> None:
        if self.place.world_size > 1:
            content = {**self.start, "fingerprint": fingerprint, "done": done}
            write_json(self.paths.ready, content)

    def _look_at_peers(self) -> None:
        """End the job when another of its processes has failed: this one may wait for it."""
        for rank in range(1, self.place.world_size):
            left = _read_json(self.paths.rank_error(rank))
            if {name: left.get(name) for name in self.start} == self.start:
                text = f"process {rank} on {left.get('host')} failed:\n{left.get('error')}"
                logger.error("%s", text)
                code = self._end_as_failed(text, FAILED)
                if self.work is not None:
                    with contextlib.suppress(OSError), Journal.open(self.work.journal) as journal:
                        journal.end("FAILED", text.splitlines()[0])
                os._exit(code)


class _Helper(_Process):
    """Another process of a job: it computes, and leaves a word if it fails."""

    def run(self) -> int:
        try:
            return self._run()
        except (InterruptedRun, KeyboardInterrupt):
            return DONE  # anything else would end the first process before it has requeued the job
        except BaseException as error:
            text = "".join(traceback.format_exception(error))
            logger.error("%s", text)
            self._leave_word(redact(text)[-ERROR_CHARACTERS:])
            return FAILED

    def _run(self) -> int:
        ready = self._wait_until_ready()
        if ready["done"]:
            return DONE
        document = self.job.document
        run = self.stage_run(ready["fingerprint"], document)
        help_perform(run, self.services.load, self.place.rank)
        return DONE

    def _wait_until_ready(self) -> dict[str, object]:
        give_up = self.services.clock() + READY_S
        while True:
            ready = _read_json(self.paths.ready)
            if {name: ready.get(name) for name in self.start} == self.start:
                return ready
            if self.services.clock() > give_up:
                raise JobFailure(f"the first process was not ready within {READY_S:.0f} s")
            self.services.pause(0.2)

    def _leave_word(self, error: str) -> None:
        """Say what happened, and stay until the first process has taken note of it.

        The scheduler kills the whole job as soon as one process has failed.
        """
        content = {**self.start, "host": socket.gethostname(), "error": error}
        with contextlib.suppress(OSError):
            write_json(self.paths.rank_error(self.place.rank), content)
        for _ in range(40):
            state = read_state(self.paths)
            if state and state.token == self.attempt.token and state.status is Status.FAILED:
                return
            self.services.pause(0.5)


def _ask_to_stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def _read_json(path: Path) -> dict[str, object]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    except (OSError, ValueError):
        return {}


if __name__ == "__main__":
    main()
