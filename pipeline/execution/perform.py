"""A stage run, from its recipe to files in `out`: the same here and in a job.

Works in `.asl/jobs/<fingerprint>/`, where a second attempt finds the checkpoints of the first.
What becomes of the files is the caller's matter.
"""

import contextlib
import fcntl
import math
import os
import resource
import shutil
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asl_core.engine.journal import (
    FAILED,
    INTERRUPTED,
    SUCCEEDED,
    Journal,
    first_time,
    redact,
)
from asl_core.errors import AslCoreError, InterruptedRun
from asl_core.recipes.optimisation import Resources
from pipeline.config.canonical import canonical_json
from pipeline.errors import AslPipeError, NotFinishedError, SupersededError
from pipeline.execution.compute import circumstances
from pipeline.execution.dataset_facts import count_test_images
from pipeline.execution.deleted import restoring_scratch, scratch_needed
from pipeline.execution.describe import describe_run
from pipeline.execution.metering import Meter
from pipeline.execution.stop_signals import RaisingHandler, stop_signals_raise
from pipeline.jobs.curves import write_curves
from pipeline.jobs.folder import JobFolder
from pipeline.jobs.journal import is_result
from pipeline.results.port import Identity
from pipeline.results.running_code import check_loaded_code, check_running_code
from pipeline.schedulers.variables import NODE
from pipeline.stages.request import StageFunction, StageRequest
from pipeline.stages.table import REPORT, STAGES, TEST_IMAGES
from pipeline.tracking.small_files import weights_in
from pipeline.writing import write_json


class BusyError(NotFinishedError):
    """Raised when another process of this machine works in the same folder."""


@dataclass(frozen=True, kw_only=True)
class StageRun:
    """A stage run that is about to begin.

    Attributes:
        stage: `pretrain`.
        key: `asl`.
        suite: Name of the suite.
        scale: Of the suite: reduced or paper.
        recipe: Resolved entry of params.yaml.
        inputs: Paths by role, see `StageRequest`.
        resources: Device, threads, workers.
        identity: Its fingerprint, the digests of its inputs, its code.
        code_root: Folder of the packages that it is to run.
        job: Where it works.
        features: Where frozen features are kept, see `StageRequest`.
        place: In which tables and rows it is shown, as tags.
        tags: What else its journal says of it: the commit, the job.
        last_tags: What its journal says at the end; given the error with which it ends, if any.
        before_checkpoint: See `StageRequest`.
        page_of: See `StageRequest`.
        begun: Called when the journal says which run it is.
        out: Where outputs go, a folder for each role; `job.out` if absent.
        locks: Keep other processes of this machine out. A job does without: a process that the
            scheduler has given up would keep it waiting; it has a fence.
    """

    stage: str
    key: str
    suite: str
    scale: str
    recipe: object
    inputs: dict[str, Path]
    resources: Resources
    identity: Identity
    code_root: Path
    job: JobFolder
    features: Path | None = None
    place: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    last_tags: Callable[[BaseException | None], dict[str, str]] = lambda _: {}
    before_checkpoint: Callable[[], None] = lambda: None
    page_of: Callable[[str], str | None] = lambda _: None
    begun: Callable[[], None] = lambda: None
    out: Path | None = None
    locks: bool = True

    @property
    def name(self) -> str:
        return STAGES[self.stage].run_name(self.key)

    def request(self, out: Path, journal: Journal) -> StageRequest[object]:
        """Return what the stage is given; makes the folders of its outputs."""
        outputs = {role: out / role for role in STAGES[self.stage].outputs}
        for folder in outputs.values():
            folder.mkdir(parents=True)
        return StageRequest(
            self.stage, self.key, self.recipe, self.inputs, self.job.folder, outputs, journal,
            self.resources, self.before_checkpoint, page_of=self.page_of,
            features=self.features,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a stage run came to. All else that is known of it is in its journal.

    Attributes:
        metrics: Results by the field's names; None for one that cannot be had.
        seconds: How long the attempt took; None where a job has made it.
        peak_memory_gib: Largest resident size of the process or of its largest child.
    """

    metrics: dict[str, float | None]
    seconds: float | None = None
    peak_memory_gib: float | None = None


def perform(
    run: StageRun, load: Callable[[str], StageFunction], confirm: Callable[[], None]
) -> Outcome:
    """Run a stage to its end, or go on where an earlier attempt stopped.

    Leaves the outputs in `run.out`, journal included where the stage keeps it.

    Args:
        run: What to run.
        load: Finds the stage's function.
        confirm: Called when the stage is done; raises if its result must not be kept.

    Raises:
        BusyError: Another process of this machine runs it.
    """
    job, out = run.job, run.out or run.job.out
    lock = _exclusive(job, run.name) if run.locks else contextlib.nullcontext()
    with lock, Journal.open(job.journal) as journal:
        shutil.rmtree(out, ignore_errors=True)
        request = restoring_scratch(run.request(out, journal), run.name)
        describe_run(request, run.suite, run.scale, run.identity, run.tags | run.place)
        run.begun()
        meter = Meter(run.resources)
        with stop_signals_raise() as handler:
            try:
                with scratch_needed(request, run.name):
                    outcome = _attempt(run, request, load, handler, meter)
                check_running_code(run.identity.code, run.code_root)
                confirm()
            except BaseException as error:
                handler.quiet = True
                _end_badly(run, journal, error, meter)
                raise
        if STAGES[run.stage].has_metrics:
            # DVC pushes no metrics file by itself; as part of a cached folder its content travels
            write_metrics(request.out / "metrics.json", run, outcome)
        _name_small_files(request)
        journal.tags(meter.used() | run.last_tags(None))
        journal.end(SUCCEEDED)
    if run.stage != REPORT.name:  # made again from the same, that one stays the same bytes
        shutil.copytree(job.journal, request.out / "journal")
        write_curves(job.journal, request.out)
    return outcome


def help_perform(
    run: StageRun, load: Callable[[str], StageFunction], rank: int, local_rank: int
) -> Outcome:
    """Run a stage as a process other than the first, which alone keeps records.

    The first on another machine samples that.
    """
    folder = run.job.rank_folder(rank)
    began = time.monotonic()
    watched = _watched_node(run.job, rank) if local_rank == 0 else contextlib.nullcontext()
    with _helper_journal(folder) as journal, watched:
        _loaded(run, load)(run.request(folder / "out", journal))
        check_running_code(run.identity.code, run.code_root)
    return Outcome(metrics={}, seconds=time.monotonic() - began)


def write_metrics(path: Path, run: StageRun, outcome: Outcome) -> None:
    """Write a run's metrics file."""
    content: dict[str, Any] = {
        "fingerprint": run.identity.fingerprint, "scale": run.scale,
        "code": run.identity.inputs.get(STAGES[run.stage].code_path(run.recipe), ""),
    }  # fmt: skip
    images = count_test_images(STAGES[run.stage], run.recipe, run.inputs)
    if images is not None:
        content[TEST_IMAGES] = images
    write_json(path, {**outcome.metrics, **content})


def _loaded(run: StageRun, load: Callable[[str], StageFunction]) -> StageFunction:
    """Return the stage's function, if it is that of the code which the result will be filed under.

    Raises:
        UserError: It is of other code.
    """
    function = load(run.stage)
    check_loaded_code(run.identity.code, run.code_root)
    return function


def _attempt(
    run: StageRun,
    request: StageRequest[object],
    load: Callable[[str], StageFunction],
    handler: RaisingHandler,
    meter: Meter,
) -> Outcome:
    """Call the stage and note what came of it."""
    began = time.monotonic()
    with _watched(request.journal):
        try:
            function = _loaded(run, load)
            found_here = circumstances(run.resources)
            request.journal.tags(found_here | meter.allotted(found_here.get("device", "cpu")))
            found = function(request)
        except BaseException:
            handler.quiet = True  # a signal that comes now must not take the error's place
            raise
    metrics = {name: value if math.isfinite(value) else None for name, value in found.items()}
    results = {n: value for n, value in metrics.items() if is_result(n) and value is not None}
    if results:  # the others are the ends of curves
        request.journal.metrics(0, results)
    return Outcome(
        metrics=metrics, seconds=time.monotonic() - began, peak_memory_gib=_peak_memory_gib()
    )


@contextlib.contextmanager
def _watched_node(job: JobFolder, rank: int) -> Iterator[None]:
    """Sample this machine beside the run's own journal, and on the same clock."""
    began = first_time(job.journal)
    with (
        Journal.open(job.node_journal(rank), began_ms=began) as journal,
        _watched(journal),
    ):
        yield


def _watched(journal: Journal) -> contextlib.AbstractContextManager[object]:
    """Sample this machine; not where psutil is missing, as on one that has only torch."""
    try:
        from asl_core.engine.system_metrics import SystemMetrics
    except ModuleNotFoundError:
        return contextlib.nullcontext()
    return SystemMetrics(journal, node=_node())


def _node() -> str | None:
    """Return what the scheduler calls this machine."""
    return os.environ.get(NODE)


@contextlib.contextmanager
def _helper_journal(folder: Path) -> Iterator[Journal]:
    """Open a journal of no consequence: the first process alone keeps records and publishes."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        with Journal.open(folder / "journal") as journal, stop_signals_raise():
            yield journal
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _end_badly(run: StageRun, journal: Journal, error: BaseException, meter: Meter) -> None:
    """Note how an attempt ended; on a full disk as far as that goes."""
    if isinstance(error, SupersededError):  # the run is its successor's now
        journal.end(INTERRUPTED, str(error))
        return
    stopped = isinstance(error, KeyboardInterrupt | InterruptedRun | NotFinishedError)
    status = INTERRUPTED if stopped else FAILED
    with contextlib.suppress(OSError):
        if not isinstance(error, AslPipeError | AslCoreError | KeyboardInterrupt):
            with run.job.log.open("a", encoding="utf-8") as log:
                log.write(redact("".join(traceback.format_exception(error))))
        journal.tags(meter.used() | run.last_tags(error))
        journal.end(status, str(error) or type(error).__name__)


def _name_small_files(request: StageRequest[object]) -> None:
    """Write config.json, and note it and the weights: who shows the run waits for them."""
    if request.stage != REPORT.name:
        (request.out / "config.json").write_text(canonical_json(request.recipe), encoding="utf-8")
        request.journal.artifact("config.json")
    for path in weights_in(request.out):
        request.journal.artifact(path.name)


@contextlib.contextmanager
def _exclusive(job: JobFolder, name: str) -> Iterator[None]:
    """Hold the job's lock, so that two processes never write the same checkpoints."""
    job.folder.mkdir(parents=True, exist_ok=True)
    with job.lock.open("w") as lock:
        try:
            # not flock: loader workers would inherit it and hold it for seconds after a SIGKILL
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise BusyError(
                f"another process on this machine runs {name}; wait until it has ended"
            ) from None
        yield


def _peak_memory_gib() -> float:
    """Return the largest resident size so far of this process or of one of its children."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(kind).ru_maxrss for kind in kinds) / 2**20  # KiB on Linux
