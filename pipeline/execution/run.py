"""Run one stage here: from params.yaml to outputs, metrics and journal.

At the end writes `runs/<stage>/<key>` (or `data/<key>`, `reports`) and the metrics file beside it.
"""

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from asl_core.errors import InterruptedRun
from asl_core.ranks import ranks_of
from pipeline.config.cluster import load_resources
from pipeline.config.params import load_params
from pipeline.errors import NotFinishedError, TrackingError
from pipeline.execution.compute import set_threads
from pipeline.execution.features import shared_features
from pipeline.execution.gpus import Gpus
from pipeline.execution.inputs import find_inputs, recipe_of
from pipeline.execution.load import load_stage
from pipeline.execution.perform import (
    BusyError,
    Outcome,
    StageRun,
    help_perform,
    perform,
    write_metrics,
)
from pipeline.execution.publish import publish
from pipeline.jobs.folder import JobFolder
from pipeline.jobs.liveness import has_succeeded
from pipeline.project import Project
from pipeline.results.code import packages_folder
from pipeline.results.documents import Hashes
from pipeline.results.port import CodeHistory, Identity, ResultCache
from pipeline.results.sources import refresh_sources
from pipeline.stages.request import StageFunction
from pipeline.stages.table import PREPARE, STAGES
from pipeline.tables.place import place_of
from pipeline.tracking.port import Presenter

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunServices:
    """The world outside, as a stage run needs it.

    Attributes:
        cache: Identity of results.
        code: Which code is running.
        presenter: Shows the run to people; absent: nobody does.
        page_of: Finds the address at which a run is shown, by its fingerprint.
        load: Finds a stage's function.
        gpus: Finds this process's GPUs.
        tags: What else the run's journal says of it.
        find_job_result: Returns what a job has made of a run, None where there is no job; absent:
            there are no jobs.
    """

    cache: ResultCache
    code: CodeHistory
    presenter: Presenter | None = None
    page_of: Callable[[str], str | None] = lambda _: None
    load: Callable[[str], StageFunction] = load_stage
    gpus: Callable[[], Gpus] = Gpus
    tags: Mapping[str, str] = field(default_factory=dict)
    find_job_result: Callable[[Project, str, Identity], Hashes | None] | None = None


def run_stage(
    project: Project, stage: str, key: str, services: RunServices, tables: list[str] | None = None
) -> Outcome:
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
    resources = load_resources(project.cluster_file, stage, key)
    inputs = find_inputs(project, stage, key, recipe)
    gpus = services.gpus()
    set_threads(resources, gpus)
    row = STAGES[stage]
    name = row.run_name(key)
    identity = _identify(services.cache, project, stage, key, recipe)
    ranks = ranks_of(os.environ)
    rank = ranks.rank
    if services.find_job_result is not None and rank == 0:
        outputs = services.find_job_result(project, name, identity)
        if outputs is not None:
            return _adopt(project, stage, key, recipe, services.cache, identity, outputs)
    if rank == 0:
        _drop_checkpoints(project, services.cache)
    job, code = JobFolder.of(project.scratch, identity.fingerprint), packages_folder(project.suite)
    run = StageRun(
        stage=stage, key=key, suite=params.suite, scale=params.scale,
        place=place_of(params, stage, key), recipe=recipe, inputs=inputs, resources=resources,
        identity=identity, code_root=code, job=job, features=shared_features(job, stage, code),
        tags=_tags(project, services, gpus) if rank == 0 else {},
        begun=partial(
            _begin_to_show, services.presenter, job, row.details(project.suite, key)
        ),
        page_of=services.page_of,
    )  # fmt: skip
    if rank > 0:
        return help_perform(run, services.load, rank, ranks.local_rank)

    def confirm() -> None:
        now = _identify(services.cache, project, stage, key, recipe)
        _check_unchanged(identity, now, stage, key)

    try:
        outcome = perform(run, services.load, confirm)
    except BaseException as error:
        if not isinstance(error, KeyboardInterrupt | InterruptedRun | BusyError):
            _show(services.presenter, run.job)
        raise
    _publish(project, run, outcome)
    _show(services.presenter, run.job, row.details(project.suite, key))
    return outcome


def _identify(
    cache: ResultCache, project: Project, stage: str, key: str, recipe: object
) -> Identity:
    """Return the identity that a run has now, its source included."""
    if stage == PREPARE.name:
        refresh_sources(project, {key: recipe}, cache)
    return cache.identify(project.suite, STAGES[stage].run_name(key))


def _tags(project: Project, services: RunServices, gpus: Gpus) -> dict[str, str]:
    return services.code.tags(project.root) | gpus.tags() | dict(services.tags)


def _adopt(
    project: Project,
    stage: str,
    key: str,
    recipe: object,
    cache: ResultCache,
    identity: Identity,
    outputs: Hashes,
) -> Outcome:
    """Lay out what a job has made, as if it had been made here.

    Raises:
        NotFinishedError: The inputs changed while it was waited for.
    """
    _check_unchanged(identity, _identify(cache, project, stage, key, recipe), stage, key)
    cache.link(project.root, outputs, project.suite)
    path = STAGES[stage].metrics_path(key)
    content = {} if path is None else json.loads((project.suite / path).read_text("utf-8"))
    metrics: dict[str, float | None] = {
        name: value
        for name, value in content.items()
        if value is None or isinstance(value, int | float)
    }
    return Outcome(metrics=metrics)


def _check_unchanged(before: Identity, now: Identity, stage: str, key: str) -> None:
    """Refuse a result whose inputs, params or code changed while it was made.

    DVC hashes dependencies after the command: it would record the new ones with the old result.
    """
    if now.fingerprint != before.fingerprint:
        raise NotFinishedError(
            f"{STAGES[stage].run_name(key)}: its parameters, inputs or code changed while it ran, "
            "so the result was discarded; run the same command again"
        )


def _publish(project: Project, run: StageRun, outcome: Outcome) -> None:
    """Bring the outputs home.

    The checkpoints stay until DVC has them too: it may yet fail to, on a full disk for instance.
    From a folder that will be deleted the run is shown from its scratch.
    """
    stage = STAGES[run.stage]
    for role, path in stage.output_paths(run.key).items():
        publish(run.job.out / role, project.suite / path, keep=project.origin is not None)
    if project.origin is None:
        run.job.out.rmdir()
    metrics = stage.metrics_path(run.key)
    if metrics is not None:
        write_metrics(project.suite / metrics, run, outcome)


def _drop_checkpoints(project: Project, cache: ResultCache) -> None:
    """Delete checkpoints of runs whose results DVC's cache has."""
    for checkpoints in (project.scratch / "jobs").glob("*/ckpt"):
        job = JobFolder(checkpoints.parent)
        with contextlib.suppress(OSError):  # of another run, which must not end this one
            if has_succeeded(job.journal) and cache.find(project.root, job.fingerprint) is not None:
                shutil.rmtree(checkpoints)


def _begin_to_show(presenter: Presenter | None, job: JobFolder, out: Path) -> None:
    if presenter is not None:
        with contextlib.suppress(TrackingError):  # the end tries again, and says so
            presenter.follow(job.journal, out)


def _show(presenter: Presenter | None, job: JobFolder, out: Path | None = None) -> None:
    """Bring the journal to people; its absence never fails a stage."""
    if presenter is None:
        return
    try:
        presenter.ingest(job.journal, out or job.details)
    except TrackingError as error:
        logger.warning("not sent to the tracker; asl-pipe sync tries again: %s", error)
