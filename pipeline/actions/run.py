"""Run one stage here: from params.yaml to outputs, metrics and journal.

Works in `.asl/jobs/<fingerprint>/`, where a second attempt finds the checkpoints of the first;
at the end writes `runs/<stage>/<key>` (or `data/<key>`, `reports`) and the metrics file beside it.
"""

import contextlib
import fcntl
import importlib
import logging
import os
import resource
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from asl_core.engine.records import Journal
from asl_core.engine.system_metrics import SystemMetrics
from asl_core.errors import AslCoreError, InterruptedRun
from asl_core.recipes.optimisation import Resources
from pipeline.actions.describe import describe_run
from pipeline.actions.inputs import find_inputs, recipe_of, stage_name
from pipeline.config.canonical import canonical_json
from pipeline.config.cluster import load_resources
from pipeline.config.params import Params, load_params
from pipeline.errors import AslPipeError, NotFinishedError, TrackingError
from pipeline.jobs.layout import JobPaths, OutputPaths
from pipeline.jobs.publish import publish
from pipeline.jobs.record import JobRecord, write_json, write_record
from pipeline.jobs.small_files import weights_in
from pipeline.ports import CodeHistory, Identity, ResultCache, Tracker
from pipeline.project import Project
from pipeline.stages.request import StageFunction, StageRequest

logger = logging.getLogger(__name__)

WITHOUT_JOURNAL = ("prepare", "report")
"""Outputs of these hold no journal: made again from the same, they stay the same bytes."""


def load_stage(stage: str) -> StageFunction:
    """Import a stage's module; this is where torch is loaded."""
    return importlib.import_module(f"pipeline.stages.{stage}").run


@dataclass(frozen=True)
class Services:
    """The world outside, as a stage run needs it.

    Attributes:
        cache: Identity of results.
        code: Which code is running.
        tracker: Where the journal is shown; absent: nowhere.
        load: Finds a stage's function.
    """

    cache: ResultCache
    code: CodeHistory
    tracker: Tracker | None = None
    load: Callable[[str], StageFunction] = load_stage


class Terminated(KeyboardInterrupt):
    """Raised by SIGTERM outside the training loop, which has its own way to stop."""


def run_stage(
    project: Project, stage: str, key: str, services: Services, tables: list[str] | None = None
) -> JobRecord:
    """Run a stage of a suite to its end, or go on where an earlier attempt stopped.

    Args:
        project: The project and the suite.
        stage: `pretrain`.
        key: `asl`.
        services: The world outside.
        tables: Names that `tables` in params.yaml may have; absent: not checked.

    Raises:
        UserError: A name, a value or an input is wrong.
        NotFinishedError: Another process runs this, or the inputs changed meanwhile.
    """
    params = load_params(project.params_file, tables)
    recipe = recipe_of(params, stage, key)
    resources = load_resources(project.cluster_file, stage)
    inputs = find_inputs(project, stage, key, recipe)
    set_threads(resources)
    name = stage_name(stage, key)
    identity = services.cache.identify(project.suite, name)
    job = JobPaths.of(project.scratch, identity.fingerprint)
    record = JobRecord(
        stage=stage, key=key, suite=params.suite, fingerprint=identity.fingerprint,
        status="RUNNING", started=time.time(),
    )  # fmt: skip
    rank = int(os.environ.get("RANK", "0"))
    if rank > 0:
        folder = job.rank_folder(rank)
        with _helper_journal(folder) as journal:
            request = StageRequest(
                stage, key, recipe, inputs, job.folder, folder / "out", journal, resources
            )
            services.load(stage)(request)
        return replace(record, status="FINISHED", ended=time.time())
    with _exclusive(job, name), Journal.open(job.journal) as journal:
        shutil.rmtree(job.out, ignore_errors=True)
        job.out.mkdir()
        request = StageRequest(stage, key, recipe, inputs, job.folder, job.out, journal, resources)
        write_record(job.record, record)
        describe_run(request, params, identity, services.code.tags(project.root))
        try:
            record = _attempt(request, record, services, job)
            _check_unchanged(services.cache, project.suite, name, identity)
        except BaseException as error:
            _end_badly(job, journal, record, error)
            if not isinstance(error, KeyboardInterrupt | InterruptedRun):
                _show(services.tracker, job)
            raise
        _name_small_files(request)
        journal.end("FINISHED")
    _publish(project, request, params, record, job)
    _show(services.tracker, job, OutputPaths.of(project.suite, stage, key).folder)
    return record


def set_threads(resources: Resources) -> None:
    """Set the number of compute threads; torch reads it when it is imported.

    The configured number; else OMP_NUM_THREADS where it is set; else cores minus loader workers.
    """
    cores = len(os.sched_getaffinity(0))
    if resources.threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(resources.threads)
    else:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores - resources.num_workers)))
    # a few microseconds of spinning: none at all halves the speed of small kernels, the default
    # slows every neighbour down twentyfold when there are more threads than cores
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")


def _attempt(
    request: StageRequest, record: JobRecord, services: Services, job: JobPaths
) -> JobRecord:
    """Call the stage, with a signal to stop turned into an exception."""
    with _sigterm_raises(), SystemMetrics(request.journal):
        metrics = services.load(request.stage)(request)
    request.journal.metrics(0, {f"final/{name}": value for name, value in metrics.items()})
    record = replace(
        record, status="FINISHED", ended=time.time(), peak_memory_gib=_peak_memory_gib(),
        metrics=metrics,
    )  # fmt: skip
    write_record(job.record, record)
    return record


@contextlib.contextmanager
def _helper_journal(folder: Path) -> Iterator[Journal]:
    """Open a journal of no consequence: the first process alone keeps records and publishes."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "out").mkdir(parents=True)
    with Journal.open(folder / "journal") as journal, _sigterm_raises():
        yield journal


def _check_unchanged(cache: ResultCache, suite: Path, name: str, before: Identity) -> None:
    """Refuse a result whose inputs, params or code changed while it was made.

    DVC hashes dependencies after the command: it would record the new ones with the old result.
    """
    if cache.identify(suite, name).fingerprint != before.fingerprint:
        raise NotFinishedError(
            f"{name}: its params, inputs or code changed while it ran, so its result is not kept; "
            "run the same command again"
        )


def _end_badly(job: JobPaths, journal: Journal, record: JobRecord, error: BaseException) -> None:
    """Note how an attempt ended; on a full disk as far as that goes."""
    stopped = isinstance(error, KeyboardInterrupt | InterruptedRun | NotFinishedError)
    status = "KILLED" if stopped else "FAILED"
    with contextlib.suppress(OSError):
        if not isinstance(error, AslPipeError | AslCoreError | KeyboardInterrupt):
            with job.log.open("a", encoding="utf-8") as log:
                traceback.print_exception(error, file=log)
        write_record(job.record, replace(record, status=status, ended=time.time()))
        journal.end(status, str(error) or type(error).__name__)


def _name_small_files(request: StageRequest) -> None:
    """Write config.json, and note it and the weights: who shows the run waits for them."""
    if request.stage != "report":
        (request.out / "config.json").write_text(canonical_json(request.recipe), encoding="utf-8")
        request.journal.artifact("config.json")
    for path in weights_in(request.out):
        request.journal.artifact(path.name)


def _publish(
    project: Project, request: StageRequest, params: Params, record: JobRecord, job: JobPaths
) -> None:
    """Bring the outputs home and drop the checkpoints."""
    output = OutputPaths.of(project.suite, request.stage, request.key)
    if request.stage not in WITHOUT_JOURNAL:
        shutil.copytree(job.journal, job.out / "journal")
    publish(job.out, output.folder)
    if output.metrics is not None:
        content: dict[str, Any] = {"fingerprint": record.fingerprint, "scale": params.scale}
        write_json(output.metrics, {**record.metrics, **content})
    shutil.rmtree(job.checkpoints, ignore_errors=True)


def _show(tracker: Tracker | None, job: JobPaths, out: Path | None = None) -> None:
    """Bring the journal to the tracking store; its absence never fails a stage."""
    if tracker is None:
        return
    try:
        tracker.ingest(job.journal, out or job.out)
    except TrackingError as error:
        logger.warning("not shown in MLflow (asl-pipe sync tries again): %s", error)


@contextlib.contextmanager
def _exclusive(job: JobPaths, name: str) -> Iterator[None]:
    """Hold the job's lock, so that two processes never write the same checkpoints."""
    job.folder.mkdir(parents=True, exist_ok=True)
    with job.lock.open("w") as lock:
        try:
            # not flock: loader workers would inherit it and hold it for seconds after a SIGKILL
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise NotFinishedError(
                f"{name} is being run by another process on this machine; wait for its end"
            ) from None
        yield


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    def terminate(_number: int, _frame: FrameType | None) -> None:
        raise Terminated

    try:
        previous = signal.signal(signal.SIGTERM, terminate)
    except ValueError:  # not the main thread: Python forbids handlers, tests run here
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _peak_memory_gib() -> float:
    """Return the largest resident size so far of this process or of one of its children."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(kind).ru_maxrss for kind in kinds) / 2**20  # KiB on Linux
