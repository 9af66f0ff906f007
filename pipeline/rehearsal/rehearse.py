"""Try out every kind of run of a suite, in the DAG's order, and project what all would take."""

import contextlib
import dataclasses
import fcntl
import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from asl_core.data.manifest import FILE_NAME, read_manifest
from asl_core.errors import AslCoreError
from asl_core.recipes.datasets import as_packed
from asl_core.recipes.imported import ImportedRecipe
from asl_core.recipes.untrained import UntrainedRecipe
from pipeline.config.params import Params, load_params
from pipeline.errors import AslPipeError, UserError
from pipeline.execution.inputs import find_inputs, start_file
from pipeline.execution.perform import BusyError
from pipeline.execution.stop_signals import stop_signals_raise
from pipeline.project import Project
from pipeline.rehearsal.kinds import (
    Kind,
    kinds_of,
    needed_for,
    settings_of,
    smallest_batch,
    trains,
)
from pipeline.rehearsal.launch import Launcher
from pipeline.rehearsal.machine import Machine
from pipeline.rehearsal.projection import Training, proportional_span, steps_of, training_span
from pipeline.rehearsal.report import RehearsalReport, StageEstimate
from pipeline.rehearsal.trial import MEASURED, OUTCOME, TOTALS, TRIAL, Mode, Outcome, Trial
from pipeline.stages.request import START
from pipeline.stages.table import MEASURED as MEASURING
from pipeline.stages.table import PREPARE, PRETRAIN, TOKENIZE

_PACKED = 64


@dataclass(frozen=True)
class Sample:
    """How many images a trial takes.

    Attributes:
        batch: Of a step and process; None: those of cluster.yaml.
        encoded: That go through a frozen encoder.
        tested: That follow training.
    """

    batch: int | None
    encoded: int
    tested: int


ON_GPU, ON_CPU = Sample(None, 64, 32), Sample(8, 8, 4)
"""A step of thousands, or a detector's 32 test images, would take hours on a CPU."""

FP16_ON_CPU = (
    "a CPU has no fast products in fp16, 60 times the time of a step in bf16 has been seen; set "
    "precision: bf16, or fp32, for runs without a GPU"
)


@dataclass
class Rehearser:
    """Tries kinds of runs out, one after the other; later ones use what earlier ones left.

    Attributes:
        project: The project and the suite.
        params: Of the suite.
        work: Where everything is written; removed at the end.
        launcher: Where trials run.
        steps: Optimiser steps of a trial.
        batch: Images of a step and process; None: those of cluster.yaml, or few without a GPU.
        counts: Images by split, of each dataset that is known.
        datasets: Folders of packed datasets, whole or their first images.
        encoders: Outputs of trials of pre-training, by experiment.
    """

    project: Project
    params: Params
    work: Path
    launcher: Launcher
    steps: int
    batch: int | None
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    datasets: dict[str, Path] = field(default_factory=dict)
    encoders: dict[str, dict[str, Path]] = field(default_factory=dict)

    def estimate(self, kind: Kind) -> StageEstimate:
        """Try a kind of runs and say what each would take; a problem is told, not raised."""
        try:
            return self._estimate(kind)
        except (AslPipeError, AslCoreError) as error:
            return StageEstimate(names=kind.names, problem=str(error))

    def _estimate(self, kind: Kind) -> StageEstimate:
        if kind.stage is PREPARE:
            return self._packed(kind)
        if kind.stage is TOKENIZE:
            return self._tokenized(kind)
        if isinstance(kind.recipe, ImportedRecipe | UntrainedRecipe):
            return self._taken_over(kind)
        if trains(kind):
            return self._trained(kind)
        return self._encoded(kind)

    def _packed(self, kind: Kind) -> StageEstimate:
        """Pack the first images, unless all are packed; the others need them."""
        key = kind.key
        whole = self.project.suite / "data" / key
        manifest = read_manifest(whole) if (whole / FILE_NAME).exists() else None
        if manifest is not None and manifest.source == _as_json(kind.recipe):
            self.counts[key] = dict(manifest.counts)
            self.datasets[key] = whole
            return StageEstimate(names=(), problem=None)
        inputs = find_inputs(self.project, PREPARE.name, key, kind.recipe)
        counts = {"train": max(_PACKED, self._largest_batch(key)), "test": ON_GPU.tested}
        trial = self._trial(kind, "pack", images=counts["train"], inputs=inputs, counts=counts)
        folder, outcome = self._run(kind, trial)
        if outcome.problem:
            return StageEstimate(names=kind.names, problem=outcome.problem)
        self.datasets[key] = folder / "out/dataset"
        self.counts[key] = json.loads((folder / TOTALS).read_text())
        packed = sum(read_manifest(self.datasets[key]).counts.values())
        total = sum(self.counts[key].values())
        return StageEstimate(
            names=kind.names,
            each=proportional_span(outcome.ended - outcome.began, packed, total),
            stored_bytes=outcome.stored_bytes * total // max(packed, 1),
        )

    def _tokenized(self, kind: Kind) -> StageEstimate:
        """Take the dataset with its tokenizer, if it has been made."""
        whole = self.project.suite / "data" / kind.key
        if not (whole / FILE_NAME).exists():
            raise UserError(f"fitting is not rehearsed; run `dvc repro {kind.names[0]}` before")
        self.datasets[kind.key], self.counts[kind.key] = whole, dict(read_manifest(whole).counts)
        return StageEstimate(names=())

    def _taken_over(self, kind: Kind) -> StageEstimate:
        """Draw or take over an encoder: it takes seconds, and evaluations need it."""
        inputs = find_inputs(self.project, PRETRAIN.name, kind.key, kind.recipe)
        folder, outcome = self._run(kind, self._trial(kind, "train", images=1, inputs=inputs))
        if outcome.problem:
            return StageEstimate(names=kind.names, problem=outcome.problem)
        self._keep_encoder(kind, folder)
        each = proportional_span(outcome.ended - outcome.began, 1, 1)
        return StageEstimate(names=kind.names, each=each, stored_bytes=outcome.stored_bytes)

    def _trained(self, kind: Kind) -> StageEstimate:
        """Do a few steps with as many images as fit, and what follows training."""
        recipe, machine = kind.recipe, self.launcher.machine(kind.stage.name, kind.key)
        there = self.counts.get(recipe.dataset, {}).get("train", recipe.batch_size)
        if there < recipe.batch_size:  # the trial's own batch would not tell
            raise UserError(
                f"batch_size {recipe.batch_size} exceeds the {there} training images of "
                f"{recipe.dataset}; lower it"
            )
        processes = machine.processes
        share = max(1, recipe.batch_size // processes)
        share = min(share, machine.resources.micro_batch_size or share)
        sample = sample_of(machine)
        wanted = self.batch or min(share, sample.batch or share)
        batch = wanted = max(min(wanted, share), smallest_batch(recipe))
        while True:
            images = batch * processes * max(2, math.ceil(self.steps / recipe.epochs))
            sliced = {"train": images, "test": sample.tested}
            inputs = self._inputs(kind)
            trial = self._trial(kind, "train", batch * processes, inputs, sliced)
            folder, outcome = self._run(kind, trial)
            if not outcome.out_of_memory or batch <= smallest_batch(recipe):
                break
            batch = max(smallest_batch(recipe), batch // 2)
        if outcome.problem:
            fits = False if outcome.out_of_memory else None
            return StageEstimate(names=kind.names, batch=batch, fits=fits, problem=outcome.problem)
        if kind.stage is PRETRAIN:
            self._keep_encoder(kind, folder)
        found = json.loads((folder / MEASURED).read_text())
        counts = self.counts[recipe.dataset]
        known = Training(
            step_s=found["step_s"],
            images=found["images"],
            batch_size=recipe.batch_size,
            steps=steps_of(recipe.epochs, counts["train"], recipe.batch_size),
            before_s=max(0.0, found["began"] - outcome.began),
            after_s=max(0.0, outcome.ended - found["ended"]),
            test_share=max(counts["test"] / sample.tested, 1.0),
            checkpoint_s=found["checkpoint_s"],
            checkpoint_minutes=machine.resources.checkpoint_minutes,
        )
        seconds = sum(found["step_s"])
        on_cpu = not found["device_bytes"]
        slow = FP16_ON_CPU if on_cpu and recipe.precision == "fp16" else None
        short = f"{batch} images of a step fit, {wanted} do not; set micro_batch_size: {batch}"
        return StageEstimate(
            names=kind.names,
            batch=batch,
            fits=batch == wanted,
            micro_batch=None if batch == wanted else batch,
            step_s=seconds / max(len(found["step_s"]), 1) * recipe.batch_size / found["images"],
            waiting=sum(found["waited_s"]) / seconds if seconds else None,
            device=found["device"],
            device_bytes=found["device_bytes"],
            peak_device_bytes=found["peak_device_bytes"],
            peak_host_bytes=found["peak_host_bytes"],
            checkpoint_bytes=found["checkpoint_bytes"],
            checkpoint_s=found["checkpoint_s"],
            stored_bytes=outcome.stored_bytes,
            each=training_span(known),
            gpus=machine.gpus if found["device_bytes"] else 0,
            problem=short if batch != wanted else slow,
        )

    def _encoded(self, kind: Kind) -> StageEstimate:
        """Send some images through the frozen encoder: that is what most of its time goes into."""
        machine = self.launcher.machine(kind.stage.name, kind.key)
        sample = sample_of(machine)
        sliced = {"train": sample.encoded, "test": sample.tested}
        trial = self._trial(kind, "encode", sample.encoded, self._inputs(kind), sliced)
        _, outcome = self._run(kind, trial)
        if outcome.problem:
            return StageEstimate(names=kind.names, problem=outcome.problem)
        counts = self.counts[kind.recipe.dataset]
        wanted = getattr(kind.recipe, "images", None) or sum(counts.values())
        return StageEstimate(
            names=kind.names,
            batch=sample.encoded,
            each=proportional_span(outcome.ended - outcome.began, sample.encoded, wanted),
            gpus=machine.gpus,
        )

    def _trial(
        self,
        kind: Kind,
        mode: Mode,
        images: int,
        inputs: dict[str, Path],
        counts: dict[str, int] | None = None,
    ) -> Trial:
        return Trial(
            params=str(self.project.params_file),
            stage=kind.stage.name,
            key=kind.key,
            mode=mode,
            images=images,
            micro_batch=None,
            steps=self.steps,
            inputs={role: str(path) for role, path in inputs.items()},
            counts=counts or {},
            resources=dataclasses.asdict(
                self.launcher.machine(kind.stage.name, kind.key).resources
            ),
        )

    def _inputs(self, kind: Kind) -> dict[str, Path]:
        """Return the data, and what trials of pre-training left."""
        name = kind.recipe.dataset
        if name not in self.datasets:
            raise UserError(f"dataset {name} could not be had: see its own line")
        inputs = {"dataset": self.datasets[name]}
        if (file := start_file(kind.recipe)) is not None:  # another experiment's need not be there
            inputs[START] = self.project.suite / file
        if kind.stage.evaluates:
            keys = [name.partition("@")[2] for name in kind.names]
            found = next((key for key in keys if key in self.encoders), None)
            if found is None:
                raise UserError(f"there is no encoder of {kind.key}: see its own line")
            inputs |= {
                role: path
                for role, path in self.encoders[found].items()
                if role in kind.stage.inputs
            }
        return inputs

    def _with_log(self, folder: Path, outcome: Outcome) -> Outcome:
        """Keep the log of a trial that ended in an error nobody foresaw, and say where it is."""
        text = logged(folder)
        if outcome.problem is None or "Traceback" not in text:
            return outcome
        kept = self.work.with_name(f"{folder.name}.log")
        kept.write_text(text)
        return dataclasses.replace(outcome, problem=f"{outcome.problem} (all of it: {kept})")

    def _largest_batch(self, dataset: str) -> int:
        """Return how many training images of a dataset some trial may want."""
        wanted = [0]
        for stage in MEASURING:
            for key, recipe in self.params.section(stage.name).items():
                if getattr(recipe, "dataset", None) == dataset and hasattr(recipe, "batch_size"):
                    machine = self.launcher.machine(stage.name, key)
                    few = (sample_of(machine).batch or recipe.batch_size) * machine.processes
                    batch = self.batch or few
                    repeats = max(2, math.ceil(self.steps / recipe.epochs))
                    wanted.append(min(batch, recipe.batch_size) * repeats)
        return max(wanted)

    def _keep_encoder(self, kind: Kind, folder: Path) -> None:
        roles = {role: folder / "out" / role for role in ("encoder", "held_out")}
        for name in kind.names:
            self.encoders[name.partition("@")[2]] = roles

    def _run(self, kind: Kind, trial: Trial) -> tuple[Path, Outcome]:
        """Run a trial where its stage would run."""
        folder = self.work / f"{kind.stage.name}-{kind.key}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / TRIAL).write_text(json.dumps(dataclasses.asdict(trial)))
        code = self.launcher.run(kind.stage.name, kind.names[0], folder)
        try:
            outcome = Outcome(**json.loads((folder / OUTCOME).read_text()))
            return folder, self._with_log(folder, outcome)
        except (OSError, ValueError, TypeError):
            killed = code in (-9, 137)
            reason = "it was killed, for memory most likely" if killed else "it ended early"
            said = last_words(folder)
            return folder, Outcome(
                began=0.0, ended=0.0, problem=f"{reason}{said}", out_of_memory=killed
            )


def rehearse(
    project: Project,
    *,
    launcher: Launcher,
    steps: int,
    batch: int | None,
    tell: Callable[[StageEstimate], None],
    only: str | None = None,
) -> RehearsalReport:
    """Try out a suite; nothing of it touches results.

    Args:
        project: The project and the suite.
        steps: Optimiser steps of a trial.
        batch: Images of a step and process; None: those of cluster.yaml, or few without a GPU.
        launcher: Where trials run.
        tell: Called with each estimate as it is made.
        only: Name of a stage: what it needs is tried too, but told only where it fails.

    Raises:
        UserError: A file of the suite is wrong, or it has no such runs.
        BusyError: It is being rehearsed by somebody else.
    """
    params = load_params(project.params_file)
    kinds = list(kinds_of(params))
    if only is not None:
        kinds = needed_for(params, kinds, only)
        if not kinds:
            raise UserError(f"{project.name} has no runs of {only}")
    with _alone(project), stop_signals_raise():
        return _rehearse(project, params, kinds, launcher, steps, batch, tell, only)


def _rehearse(
    project: Project,
    params: Params,
    kinds: list[Kind],
    launcher: Launcher,
    steps: int,
    batch: int | None,
    tell: Callable[[StageEstimate], None],
    only: str | None,
) -> RehearsalReport:
    work = project.scratch / "rehearsals" / f"{project.name}-work"
    shutil.rmtree(work, ignore_errors=True)
    rehearser = Rehearser(project, params, work, launcher, steps, batch)
    estimates = []
    try:
        for kind in kinds:
            found = rehearser.estimate(kind)
            asked_for = only in (None, kind.stage.name)
            if found.names and (asked_for or found.problem):
                tell(found)
                estimates.append(found)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    made = datetime.now(UTC).isoformat(timespec="seconds")
    return RehearsalReport(
        suite=project.name,
        made=made,
        estimates=tuple(estimates),
        settings=settings_of(params),
        batch=batch,
    )


@contextlib.contextmanager
def _alone(project: Project) -> Iterator[None]:
    """Hold the suite's lock: a second rehearsal would remove what the first one works on."""
    path = project.scratch / "rehearsals" / f"{project.name}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.open("w")
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); make room there") from error
    with lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise BusyError(
                f"{project.name} is being rehearsed already; wait until that has ended"
            ) from None
        yield


def _as_json(recipe: Any) -> Any:
    """Return a dataset's recipe as its manifest has it."""
    return json.loads(json.dumps(as_packed(recipe)))


def sample_of(machine: Machine) -> Sample:
    """Return how many images a trial takes on a machine."""
    return ON_GPU if machine.gpus else ON_CPU


def last_words(folder: Path) -> str:
    """Return the last line that a trial has printed, behind a colon; empty if it printed none."""
    lines = logged(folder).strip().splitlines()
    return f": {lines[-1]}" if lines else ""


def logged(folder: Path) -> str:
    """Return all that a trial has printed."""
    logs = [folder / "log.txt", *sorted((folder / "log").glob("*.log"))]
    return "".join(log.read_text(errors="replace") for log in logs if log.is_file())
