"""One run of a bundle, in a process of its own: what `asl-pipe run` is where the project is."""

import dataclasses
import logging
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asl_core.engine.journal import redact
from asl_core.errors import AslCoreError, InterruptedRun
from asl_core.recipes.optimisation import Resources
from pipeline.bundles.folder import WorkFolder
from pipeline.bundles.machine import gpus_of_torch, machine_facts, visible_gpus
from pipeline.bundles.manifest import (
    BUNDLE_TAG,
    METRICS,
    PICTURES,
    SUITE,
    Manifest,
    Marks,
    Record,
    RunPlan,
    Status,
    mark_file,
    mark_folder,
    under,
)
from pipeline.bundles.plain import from_plain
from pipeline.bundles.undrawn import replace_if_missing
from pipeline.errors import AslPipeError, NotFinishedError, UserError
from pipeline.execution.compute import circumstances, set_threads
from pipeline.execution.perform import Outcome, StageRun, perform, write_metrics
from pipeline.execution.publish import publish
from pipeline.results.port import Identity
from pipeline.results.running_code import loaded_code
from pipeline.stages.table import STAGES

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Bundle:
    """A bundle that lies unpacked.

    Attributes:
        manifest: What it consists of.
        digest: Its name.
        work: Where it lies.
        load: Imports a module.
        resources: Settings of the machine that go before those of the bundle: `device`, ...
    """

    manifest: Manifest
    digest: str
    work: WorkFolder
    load: Callable[[str], Any]
    resources: dict[str, Any] = dataclasses.field(default_factory=dict[str, Any])


def run_one(bundle: Bundle, plan: RunPlan) -> Record:
    """Run to the end or to a stop, and return what became of it; it is written down, too."""
    record = Record(
        name=plan.name, status=Status.FAILED, fingerprint=plan.fingerprint, document=plan.document
    )
    try:
        record = _run(bundle, plan, record)
    except (InterruptedRun, KeyboardInterrupt, NotFinishedError) as error:
        said = str(error) or type(error).__name__
        record = dataclasses.replace(record, status=Status.INTERRUPTED, detail=said)
    except (AslPipeError, AslCoreError) as error:
        record = dataclasses.replace(record, detail=redact(str(error)))
    except ModuleNotFoundError as error:
        record = dataclasses.replace(record, detail=f"{error}; install it and start again")
    except Exception as error:
        logger.error("%s", redact("".join(traceback.format_exception(error))))
        said = " ".join(str(error).split())
        record = dataclasses.replace(record, detail=redact(f"{type(error).__name__}: {said}"))
    if record.status is not Status.FINISHED:
        record = dataclasses.replace(record, machine=machine_facts())
    bundle.work.write_record(record)
    return record


def _run(bundle: Bundle, plan: RunPlan, record: Record) -> Record:
    work, undrawn = bundle.work, replace_if_missing()
    resources = Resources(**{**plan.resources, **bundle.resources})
    set_threads(resources, visible_gpus())
    inputs = _checked_inputs(bundle, plan)
    pictures = {} if undrawn is None else {PICTURES: undrawn}
    run = _stage_run(bundle, plan, resources, plan.fingerprint, pictures)
    outcome = _perform(bundle, run)
    files = _publish(work, run, outcome)
    machine = machine_facts() | circumstances(resources) | pictures
    return dataclasses.replace(
        record, status=Status.FINISHED, machine=machine, seconds=outcome.seconds, inputs=inputs,
        code=loaded_code(run.identity.code), files=files,
    )  # fmt: skip


def train_only(bundle: Bundle, plan: RunPlan, scratch: str) -> None:
    """Train as `run_one` would, in other scratch; nothing is published or written down.

    Raises:
        InterruptedRun: It was stopped, as it is meant to be.
    """
    replace_if_missing()
    resources = Resources(**{**plan.resources, **bundle.resources})
    set_threads(resources, visible_gpus())
    _checked_inputs(bundle, plan)
    _perform(bundle, _stage_run(bundle, plan, resources, scratch, {}))


def _stage_run(
    bundle: Bundle, plan: RunPlan, resources: Resources, scratch: str, tags: dict[str, str]
) -> StageRun:
    work, job = bundle.work, bundle.work.job(scratch)
    return StageRun(
        stage=plan.stage, key=plan.key, suite=bundle.manifest.suite, scale=bundle.manifest.scale,
        place=plan.place, recipe=from_plain(plan.recipe, bundle.load),
        inputs={role: work.suite / path for role, path in plan.inputs.items()},
        resources=resources,
        identity=Identity(
            plan.fingerprint, plan.digests, (work.code / plan.code).read_text(encoding="utf-8")
        ),
        code_root=work.code, job=job, features=job.features,
        tags=bundle.manifest.tags | {BUNDLE_TAG: bundle.digest[:12]} | tags,
        last_tags=lambda _: gpus_of_torch().tags(),
    )  # fmt: skip


def _perform(bundle: Bundle, run: StageRun) -> Outcome:
    return perform(run, lambda stage: bundle.load(STAGES[stage].module).run, lambda: None)


def _checked_inputs(bundle: Bundle, plan: RunPlan) -> Marks:
    """Return the marks of what a run reads, by path in the suite's folder.

    Raises:
        UserError: Something else lies there than was packed, or than the run before has made.
    """
    found: Marks = {}
    for role, path in plan.inputs.items():
        seen = under(path, mark_folder(bundle.work.suite / path))
        differing = sorted(dict(seen.items() ^ _expected(bundle, plan, path).items()))
        if differing:
            raise UserError(
                f"{plan.name}: its {role} is not what it was: {SUITE}/{differing[0]}; delete "
                f"{bundle.work.suite / path} and start again"
            )
        found |= seen
    return found


def _expected(bundle: Bundle, plan: RunPlan, path: str) -> Marks:
    maker = plan.makers.get(path)
    if maker is None:
        start = f"{SUITE}/{path}/"
        return {
            name.removeprefix(f"{SUITE}/"): mark
            for name, mark in bundle.manifest.files.items()
            if name.startswith(start)
        }
    record = bundle.work.read_record(maker)
    made = next(run for run in bundle.manifest.runs if run.name == maker)
    roles = {place: role for role, place in STAGES[made.stage].output_paths(made.key).items()}
    start = f"{roles[path]}/"
    files = {} if record is None else record.files
    return {
        f"{path}/{name.removeprefix(start)}": mark
        for name, mark in files.items()
        if name.startswith(start)
    }


def _publish(work: WorkFolder, run: StageRun, outcome: Outcome) -> Marks:
    """Bring outputs to where later runs find them, and return their marks."""
    stage, files = STAGES[run.stage], Marks()
    for role, path in stage.output_paths(run.key).items():
        publish(run.job.out / role, work.suite / path)
        files |= under(role, mark_folder(work.suite / path))
    metrics = stage.metrics_path(run.key)
    if metrics is not None:
        write_metrics(work.suite / metrics, run, outcome)
        files[METRICS] = mark_file(work.suite / metrics)
    return files


def places_of(work: WorkFolder, plan: RunPlan) -> dict[str, Path]:
    """Return role -> where an output lies, the metrics file among them."""
    stage = STAGES[plan.stage]
    places = {role: work.suite / path for role, path in stage.output_paths(plan.key).items()}
    metrics = stage.metrics_path(plan.key)
    return places if metrics is None else {**places, METRICS: work.suite / metrics}
