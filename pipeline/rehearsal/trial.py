"""One stage, tried out in a process of its own: `python -m pipeline.rehearsal.trial FOLDER`.

The folder has trial.json, which says what to try; outcome.json is what came of it. Nothing else is
written but below the folder.
"""

import dataclasses
import importlib
import json
import os
import sys
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from asl_core.engine.context import Rehearsal
from asl_core.engine.journal import Journal
from asl_core.errors import AslCoreError
from asl_core.recipes.optimisation import Resources
from pipeline.config.params import load_params
from pipeline.errors import AslPipeError
from pipeline.execution.compute import set_threads
from pipeline.execution.gpus import find_gpus
from pipeline.execution.inputs import recipe_of
from pipeline.stages.request import StageRequest
from pipeline.stages.table import STAGES
from pipeline.writing import write_json

TRIAL, OUTCOME, MEASURED, TOTALS = "trial.json", "outcome.json", "measured.json", "totals.json"
Mode = Literal["train", "encode", "pack"]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What is to be tried.

    Attributes:
        params: The suite's params.yaml.
        stage, key: Which run.
        mode: Its first steps and what follows them; images through its encoder; or packing.
        images: Of a step, over all processes; or those that are encoded.
        micro_batch: Images of a forward pass; None: all of a process.
        steps: Optimiser steps.
        inputs: Paths by role: datasets, encoders of earlier trials.
        counts: Images by split that are packed, or taken of a packed dataset.
        resources: Of the stage.
    """

    params: str
    stage: str
    key: str
    mode: Mode
    images: int
    micro_batch: int | None = None
    steps: int = 12
    inputs: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    resources: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of it.

    Attributes:
        began, ended: Seconds since the epoch: with the stage's code loaded, and at the end.
        stored_bytes: Of all outputs.
        problem: In one line, where there was one.
        out_of_memory: Whether that was it.
    """

    began: float
    ended: float
    stored_bytes: int = 0
    problem: str | None = None
    out_of_memory: bool = False


def main(folder: Path) -> None:
    """Try what trial.json says and write outcome.json."""
    trial = Trial(**json.loads((folder / TRIAL).read_text(encoding="utf-8")))
    if trial.mode != "train" and _rank() > 0:
        return  # the first process does it alone
    resources = Resources(**trial.resources)
    set_threads(resources, find_gpus())
    began = time.time()
    try:
        began = _try(trial, resources, folder)
        outcome = Outcome(began=began, ended=time.time(), stored_bytes=_size(folder / "out"))
    except (AslCoreError, AslPipeError) as error:
        text = str(error)
        outcome = Outcome(
            began=began, ended=time.time(), problem=text, out_of_memory="out of memory" in text
        )
    except Exception as error:  # whatever it is, it is the finding: the first line of it is told
        traceback.print_exc()  # the rest is in the trial's log, which is kept
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        full = isinstance(error, MemoryError) or "out of memory" in text
        outcome = Outcome(began=began, ended=time.time(), problem=text, out_of_memory=full)
    if _rank() == 0:
        write_json(folder / OUTCOME, dataclasses.asdict(outcome))  # whole or not at all


def _try(trial: Trial, resources: Resources, folder: Path) -> float:
    """Do it; return when the code was loaded."""
    recipe = recipe_of(load_params(Path(trial.params)), trial.stage, trial.key)
    inputs = {role: Path(path) for role, path in trial.inputs.items()}
    if trial.mode == "pack":
        prepare = importlib.import_module("asl_core.data.prepare").prepare
        sources = importlib.import_module("asl_core.data.sources.catalogue")
        whole = sources.open_source(recipe, inputs["data_root"])
        totals = {name: split.count for name, split in whole.splits.items()}
        (folder / TOTALS).write_text(json.dumps(totals))
        began = time.time()
        generous = dataclasses.replace(recipe, max_rejected_share=0.99)
        prepare(
            generous, inputs["data_root"], folder / "out/dataset", name=trial.key,
            beginning=trial.counts,
        )  # fmt: skip
        return began
    if trial.counts:
        slices = importlib.import_module("asl_core.data.slices")
        own = folder / f"slice-{_rank()}"
        slices.slice_packed(inputs["dataset"], own, trial.counts)
        inputs["dataset"] = own
    if trial.mode == "encode":
        return _encode(trial, recipe, resources, inputs)
    run = importlib.import_module(STAGES[trial.stage].module).run
    began = time.time()
    work = folder if _rank() == 0 else folder / f"rank-{_rank()}"
    outputs = {role: work / "out" / role for role in STAGES[trial.stage].outputs}
    for output in outputs.values():
        output.mkdir(parents=True)
    resources = dataclasses.replace(resources, micro_batch_size=trial.micro_batch)
    rehearsal = Rehearsal(folder / MEASURED, trial.steps, trial.steps // 3)
    with Journal.open(work / "journal") as journal:
        request = StageRequest(
            trial.stage, trial.key, smaller(recipe, trial.images), inputs, work, outputs, journal,
            resources, rehearsal=rehearsal,
        )  # fmt: skip
        run(request)
    return began


def smaller(recipe: Any, images: int) -> Any:
    """Return a recipe with another batch, whose rate stays that of the true one."""
    if not hasattr(recipe, "batch_size"):
        return recipe  # of an encoder that nobody trains
    fields: dict[str, Any] = {"batch_size": images}
    if getattr(recipe, "lr", None) is None:
        fields["lr"] = recipe.peak_lr
    return dataclasses.replace(recipe, **fields)


def _encode(trial: Trial, recipe: Any, resources: Resources, inputs: dict[str, Path]) -> float:
    features = importlib.import_module("asl_core.transfer.features")
    encoders = importlib.import_module("asl_core.modules.encoder")
    shards = importlib.import_module("asl_core.data.shards")
    side = getattr(recipe, "image_size", None)
    encoder = encoders.load_encoder(inputs["encoder"], image_size=side)
    dataset = shards.PackedDataset(inputs["dataset"], "train")
    indices = [i % len(dataset) for i in range(trial.images)]
    precision = getattr(recipe, "precision", "fp32")

    def encode(count: int) -> None:
        features.encode(
            encoder, dataset, indices[:count],
            lambda images: features.frozen_features(encoder, images, ("cls", "mean")),
            precision=precision, resources=resources,
        )  # fmt: skip

    encode(min(8, trial.images))  # what only the first batch takes
    began = time.time()
    encode(trial.images)
    return began


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
