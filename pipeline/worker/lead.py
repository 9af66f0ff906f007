"""The first process of a job: keeps the record, publishes, decides how it goes on.

Reads the record, DVC's cache and nothing of the workspace; writes under `.asl/jobs` and, at the
end, DVC's caches.
"""

import contextlib
import dataclasses
import itertools
import logging
import os
import re
import shutil
import signal
import traceback
from collections.abc import Mapping
from pathlib import Path

from asl_core.engine.journal import Journal, redact
from asl_core.errors import InputError, InterruptedRun, TrainingError
from pipeline.config.params import load_params
from pipeline.errors import AslPipeError, SupersededError
from pipeline.execution.perform import StageRun, perform, write_metrics
from pipeline.execution.stop_signals import StopSignals
from pipeline.jobs.fence import Fence
from pipeline.jobs.folder import JobFolder
from pipeline.jobs.halving import Halver, Mark, basis_of, rungs_of
from pipeline.jobs.job import Attempt, Job, newer_attempt
from pipeline.jobs.local_run import host_of_local_run
from pipeline.jobs.progress import ProgressReader
from pipeline.jobs.reporter import Reporter, as_fields
from pipeline.jobs.starts import Cause, Start, write_start
from pipeline.jobs.state import ERROR_CHARACTERS, JobState, RunStatus, read_state
from pipeline.results.code import code_folder
from pipeline.results.documents import Document, Hashes, hashes_of
from pipeline.results.port import Filing
from pipeline.results.sources import changed_since
from pipeline.stages.table import PREPARE, PRETRAIN, STAGES
from pipeline.worker.continuation import go_on_later, hand_over_again
from pipeline.worker.process import (
    DONE,
    FAILED,
    INTERRUPTED,
    STOPPED,
    JobFailure,
    JobProcess,
    Place,
    WorkerServices,
    exit_code_of,
)
from pipeline.worker.upstream import UpstreamPending, resolve, yield_folder_to_live_job
from pipeline.writing import write_json

logger = logging.getLogger(__name__)

ASKS_TO_GO_ON = {"SIGUSR1", "SIGUSR2"}
"""The scheduler's warning before a time limit or a preemption. SIGTERM alone is its own way to
requeue a job, or somebody's wish to end it."""

NO_MEMORY = re.compile(
    r"\bMemoryError\b|can(no|')t allocate memory|is killed by signal: Killed", re.IGNORECASE
)
"""What tracebacks say where the memory of the machine, not that of a GPU, was too small; a loader
process that is killed was that as a rule."""


class Lead(JobProcess):
    """The first process: it keeps the record, publishes, and decides how it goes on."""

    def __init__(
        self,
        paths: JobFolder,
        job: Job,
        attempt: Attempt,
        place: Place,
        services: WorkerServices,
        signals: StopSignals,
    ) -> None:
        super().__init__(paths, job, attempt, place, services, signals)
        self.fences: list[Fence] = []
        self.restarts = attempt.restarts + place.restart
        self.work: JobFolder | None = None
        self.progress: ProgressReader | None = None
        self.halver: Halver | None = None
        self.stopped_at: Mark | None = None
        now = services.clock()
        self.own_gpus = services.gpus()
        state = JobState(
            status=RunStatus.RUNNING, attempt=attempt.number, token=attempt.token,
            job_id=place.job_id, restarts=self.restarts, heartbeat=now, started=now,
            nodes=place.nodes, gpus=self.own_gpus.uuids, driver=self.own_gpus.driver,
            pid=os.getpid(),
        )  # fmt: skip
        self.reporter = Reporter(paths, state, self.check_fences, services.clock)
        self.noted = Start(
            attempt=attempt.number, restart=place.restart, job_id=place.job_id, nodes=place.nodes,
            snapshot=attempt.terms.snapshot, memory=attempt.terms.asked.get("memory"), began=now,
        )  # fmt: skip

    def run(self) -> int:
        """Run to the end, whatever the end is."""
        try:
            return self._run()
        except BaseException as error:
            self.signals.handler.quiet = True  # how it ends is written down whole
            return self._end(error)
        finally:
            self.reporter.end()
            self.reporter.give_back()

    def check_fences(self) -> None:
        """Raise SupersededError when a newer start has taken over."""
        for fence in self.fences:
            fence.check()

    def is_being_stopped(self) -> bool:
        """Say whether a signal stops the whole job.

        SIGTERM alone also comes to a job of which one process was killed; that one said nothing.
        """
        asked = ASKS_TO_GO_ON & set(self._stop_names())
        return bool(asked) or len(self.stopped_peers()) == self.place.world_size - 1

    def _stop_names(self) -> tuple[str, ...]:
        """Return the signals that have come, to this process first."""
        said = [name for peer in self.stopped_peers() for name in peer["signals"]]
        return tuple(dict.fromkeys([*self.signals.names, *said]))

    def _run(self) -> int:
        paths, services = self.paths, self.services
        self._fence(paths.fence)
        self.signals.listen()
        self.reporter.begin()
        self._note()
        self.reporter.keep_beating(self._look, self._tick, _ask_to_stop, services.heartbeat_s)
        limit = self.attempt.terms.asked.get("max_restarts")
        if limit is not None and self.restarts > limit:
            raise JobFailure(f"restarted {self.restarts} times; max_restarts is {limit}")
        document = resolve(self.job, self.attempt.terms.upstream, self.paths, services)
        fingerprint = services.cache.key(document)
        self.work = JobFolder.of(paths.scratch, fingerprint)
        self.reporter.update(fingerprint=fingerprint)
        found = None if self.attempt.terms.force else services.cache.find(self.root, fingerprint)
        if found is not None:
            logger.info("%s: the result exists already", self.job.name)
            self._tell_peers(fingerprint, done=True)
            return self._succeeded(found)
        self._refuse_company(self.work)
        if self.work.folder != paths.folder:
            self._fence(self.work.fence)
        self._lay_out_inputs(document)
        self._tell_peers(fingerprint, done=False)
        self.progress = ProgressReader(self.work.journal, self.job.stage)
        run = self.stage_run(fingerprint, document)
        self.halver = self._halver(run)
        # a folder of its own: what a given-up start still writes must not get between
        out = self.work.folder / f"out.{self.fences[0].start}"
        run = dataclasses.replace(
            run, tags=self._tags(), last_tags=self._last_tags, out=out, locks=False,
            before_checkpoint=self.check_fences,
        )  # fmt: skip
        outcome = perform(run, self.load, lambda: self._confirm(run))
        self.signals.handler.quiet = True  # what is left takes seconds and is final
        write_metrics(self.work.metrics, run, outcome)
        manifest = self._file(document, out)
        self._keep_only(out)
        return self._succeeded(manifest)

    def _confirm(self, run: StageRun) -> None:
        """Raise if the result must not be kept."""
        self.check_fences()
        if self.job.stage == PREPARE.name:
            path = PREPARE.input_paths(run.key, run.recipe)["source"]
            planned = (self.paths.inputs / path).read_text(encoding="utf-8")
            if changed := changed_since(planned, run.recipe, run.inputs["data_root"]):
                raise JobFailure(
                    f"{self.job.name}: its source is not what it was when the job was submitted "
                    f"({'; '.join(changed)}); submit again"
                )

    def _halver(self, run: StageRun) -> Halver | None:
        """Return who stops this run where it is hopeless; None where nobody does."""
        assert self.work is not None
        if run.stage != PRETRAIN.name:
            return None
        sweeps = load_params(self.paths.params).sweeps
        rungs = rungs_of(self.paths.scratch, run.suite, sweeps, run.key, run.recipe)
        if rungs is None:
            return None
        basis = basis_of(run.identity.code, run.identity.inputs)
        rungs = dataclasses.replace(rungs, basis=basis)
        return Halver(rungs, self.work, self.services.heartbeat_s)

    def _fence(self, file: Path) -> None:
        yield_folder_to_live_job(file, self.paths, self.services)
        self.fences.append(Fence.put_up(file, self.paths, self.attempt.number, self.place.restart))

    def _refuse_company(self, work: JobFolder) -> None:
        """Raise JobFailure when `dvc repro` makes the same run: they would share checkpoints."""
        services = self.services
        host = host_of_local_run(work, services.clock(), services.patience.silence_s)
        if host is not None:
            raise JobFailure(
                f"{self.job.name}: `dvc repro` is running it on {host}; wait for that, or stop "
                "it and submit again to resume from its checkpoint"
            )

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
        encoder = PRETRAIN.output_paths(self.job.key)["encoder"]
        if encoder in self.attempt.terms.upstream:  # which run made it is asked of its metrics file
            made = self._final_fingerprint(self.attempt.terms.upstream[encoder])
            metrics = self.paths.inputs / str(PRETRAIN.metrics_path(self.job.key))
            metrics.parent.mkdir(parents=True, exist_ok=True)
            write_json(metrics, {"fingerprint": made})

    def _final_fingerprint(self, fingerprint: str) -> str:
        state = read_state(JobFolder.of(self.paths.scratch, fingerprint))
        return (state.fingerprint if state else None) or fingerprint

    def _keep_only(self, out: Path) -> None:
        """Leave the outputs where trackers find their pictures; remove what other starts left."""
        assert self.work is not None
        shutil.rmtree(self.work.out, ignore_errors=True)
        with contextlib.suppress(OSError):
            out.rename(self.work.out)
        for left in self.work.folder.glob("out.*"):
            shutil.rmtree(left, ignore_errors=True)

    def _file(self, document: Document, out: Path) -> Hashes:
        assert self.work is not None
        stage, key = STAGES[self.job.stage], self.job.key
        places = {path: out / role for role, path in stage.output_paths(key).items()}
        metrics = stage.metrics_path(key)
        if metrics is not None:
            places[metrics] = self.work.metrics
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
        log = self.paths.logs.relative_to(self.root) / f"{self.place.job_id}_0.log"
        return {
            **self.attempt.terms.code,
            "attempt": str(self.attempt.number),
            "restarts": str(self.restarts),
            "snapshot": self.attempt.terms.snapshot,
            "record": self.paths.fingerprint,
            "job.id": str(self.place.job_id),
            "job.nodes": self.place.nodes,
            "job.scheduler": self.attempt.terms.scheduler,
            "log": log.as_posix(),
            **self.own_gpus.tags(),
            **self.services.tags,
        }

    def _last_tags(self, error: BaseException | None) -> dict[str, str]:
        uuids = ",".join(self._gpus()) or "none"
        return {"gpu.uuids": uuids, "exit_code": str(exit_code_of(error))}

    def _gpus(self) -> tuple[str, ...]:
        """Return the UUIDs of all nodes' GPUs that have told them."""
        ranks = range(1, self.place.world_size)
        told = [self.read_own(self.paths.rank_gpus(rank)).get("gpus", ()) for rank in ranks]
        return tuple(dict.fromkeys(itertools.chain(self.reporter.state.gpus, *told)))

    # How it ends

    def _succeeded(self, manifest: Hashes) -> int:
        now = self.services.clock()
        self.reporter.update(
            status=RunStatus.SUCCEEDED, ended=now, exit_code=DONE, error=None, gpus=self._gpus(),
            manifest={path: dict(hashed) for path, hashed in manifest.items()}, **self._look(),
        )  # fmt: skip
        self._note(Cause.SUCCEEDED)
        shutil.rmtree(self.paths.inputs, ignore_errors=True)
        if self.work is not None:
            shutil.rmtree(self.work.checkpoints, ignore_errors=True)
        return DONE

    def _end(self, error: BaseException) -> int:
        if isinstance(error, SupersededError):
            return self._superseded(error)
        if isinstance(error, UpstreamPending):
            return self._wait_for(error)
        if isinstance(error, InterruptedRun | KeyboardInterrupt):
            return self._interrupted(error)
        return self._failed(error)

    def _superseded(self, error: SupersededError) -> int:
        """Leave the run to a newer start.

        A newer attempt is another job: jobs that wait for this one look for it when they begin,
        and would never begin if this one had failed.
        """
        logger.warning("%s", error)
        return INTERRUPTED if newer_attempt(self.paths, self.attempt.number) is None else DONE

    def _failed(self, error: BaseException) -> int:
        """Write down why; an error that is meant for people is one line, others a traceback."""
        if isinstance(error, AslPipeError | InputError):
            text = str(error)
        else:
            text = redact("".join(traceback.format_exception(error)))
        logger.error("%s", text)
        expected = isinstance(error, AslPipeError | InputError | TrainingError)
        return self._end_as_failed(
            text, exit_code_of(error), Cause.INPUT if expected else _cause_of(text)
        )

    def _end_as_failed(self, text: str, code: int, cause: Cause) -> int:
        self._note(cause)
        try:
            self.reporter.update(
                status=RunStatus.FAILED, ended=self.services.clock(), exit_code=code,
                error=redact(text)[-ERROR_CHARACTERS:], gpus=self._gpus(), **self._look(),
            )  # fmt: skip
        except SupersededError as superseded:
            return self._superseded(superseded)
        except OSError as unwritten:
            logger.error("the record could not be written: %s", unwritten)
        return code

    def _interrupted(self, error: BaseException) -> int:
        """Keep what is there and see to it that the work goes on, if that is what was asked."""
        if self.place.world_size > 1:  # another process may have got the signal first
            self.soon(lambda: bool(self._stop_names()))
        names = self._stop_names()
        if self.stopped_at is not None:
            return self._stopped(self.stopped_at)
        logger.warning("%s: interrupted (%s)", self.job.name, error or ", ".join(names))
        limit = self.attempt.terms.asked.get("max_restarts")
        goes_on = bool(ASKS_TO_GO_ON & set(names))
        if goes_on and limit is not None and self.restarts >= limit:
            text = (
                f"interrupted by {'+'.join(names)} after {limit} restarts; max_restarts is {limit}"
            )
            return self._end_as_failed(text, FAILED, Cause.STOPPED)
        self._note(Cause.STOPPED)
        try:
            self.reporter.update(
                status=RunStatus.INTERRUPTED, ended=self.services.clock(), exit_code=INTERRUPTED,
                stopped_by=names, gpus=self._gpus(), **self._look(),
            )  # fmt: skip
        except SupersededError as superseded:
            return self._superseded(superseded)
        except OSError as unwritten:  # no reason not to go on from the checkpoint
            logger.error("the record could not be written: %s", unwritten)
        if not goes_on:
            return INTERRUPTED
        self.reporter.end()  # nothing may be written from the moment the next start is possible
        return go_on_later(self, self.restarts)

    def _stopped(self, mark: Mark) -> int:
        """Write down on what number the run was given up; its checkpoint stays."""
        assert self.halver is not None
        text = mark.text(self.halver.metric)
        logger.warning("%s: %s", self.job.name, text)
        self._note(Cause.STOPPED)
        try:
            self.reporter.update(
                status=RunStatus.STOPPED, ended=self.services.clock(), exit_code=STOPPED,
                error=text, gpus=self._gpus(), **self._look(),
            )  # fmt: skip
        except SupersededError as superseded:
            return self._superseded(superseded)
        except OSError as unwritten:
            logger.error("the record could not be written: %s", unwritten)
        return STOPPED

    def _wait_for(self, pending: UpstreamPending) -> int:
        """Begin when what this job needs is there: its maker has become another job meanwhile."""
        logger.info("%s", pending)
        self._note(Cause.STOPPED)
        try:
            self.reporter.update(status=RunStatus.INTERRUPTED, ended=self.services.clock())
        except SupersededError as superseded:
            return self._superseded(superseded)
        except OSError as unwritten:
            logger.error("the record could not be written: %s", unwritten)
        self.reporter.end()
        return hand_over_again(self, self.restarts, after=pending.job_ids)

    # While it runs

    def _look(self) -> dict[str, object]:
        """Return what a heartbeat says besides that it beats."""
        return {} if self.progress is None else as_fields(self.progress.read())

    def _tell_peers(self, fingerprint: str, *, done: bool) -> None:
        if self.place.world_size > 1:
            content = {**self.start, "fingerprint": fingerprint, "done": done}
            write_json(self.paths.ready, content)

    def _tick(self) -> None:
        """Note at once that somebody asked for the end: there may be no time to write more."""
        if self.signals.names and not self.noted.signals and self.noted.ended is None:
            self._note()
        self._look_at_peers()
        self._look_at_siblings()

    def _note(self, cause: Cause | None = None) -> None:
        """Write down where this start is, and why it ends where it does."""
        ended = None if cause is None else self.services.clock()
        self.noted = dataclasses.replace(
            self.noted, cause=cause, ended=ended, signals=tuple(self.signals.names)
        )
        write_start(self.paths, self.noted)

    def _look_at_siblings(self) -> None:
        """Ask the run to stop at a checkpoint when too many runs of its sweep are better."""
        if self.halver is None or self.stopped_at is not None or self.signals.handler.quiet:
            return
        with contextlib.suppress(OSError, InputError):  # the next look may succeed
            self.stopped_at = self.halver.look(self.services.clock())
        if self.stopped_at is not None:
            _ask_to_stop()

    def _look_at_peers(self) -> None:
        """End the job when another of its processes has failed: this one may wait for it."""
        if self.signals.handler.quiet:
            return  # it is ending already
        for rank in range(1, self.place.world_size):
            left = self.read_own(self.paths.rank_error(rank))
            if left:
                text = f"process {rank} on {left.get('host')} failed:\n{left.get('error')}"
                logger.error("%s", text)
                code = self._end_as_failed(text, FAILED, _cause_of(text))
                if self.work is not None:
                    with contextlib.suppress(OSError), Journal.open(self.work.journal) as journal:
                        journal.tags({"exit_code": str(code)})
                        journal.end("FAILED", text.splitlines()[0])
                os._exit(code)


def _cause_of(text: str) -> Cause:
    """Return why an unexpected error ended a start, from its traceback."""
    return Cause.MEMORY if NO_MEMORY.search(text) else Cause.CRASHED


def _ask_to_stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
