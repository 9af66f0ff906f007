"""What a stage is given, what it must give back, and what is left of it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asl_core.engine.journal import Journal
from asl_core.recipes.optimisation import Resources


@dataclass(frozen=True)
class StageRequest:
    """One stage run: the same wherever it is called from.

    Attributes:
        stage: Name of the stage, `pretrain`.
        key: Name of the entry of params.yaml, `asl`.
        recipe: Resolved dataclass of that entry; for `report` the whole `Params`.
        inputs: Paths by role. `dataset`: data/<name>; `encoder`: runs/pretrain/<key>;
            `imported`: the folder of an experiment that is not trained here;
            `prepare` has `data_root`, against which relative paths of a dataset are resolved;
            `report` has `suite`, the suite's folder.
        work: Scratch that survives a kill; checkpoints go to work/"ckpt".
        out: Empty folder; what is written here becomes the stage's output.
        journal: Where metrics, datasets and pictures are recorded.
        resources: Device, threads, workers.
        before_checkpoint: To be called before each checkpoint; raises if another process has
            taken this run over.
    """

    stage: str
    key: str
    recipe: Any
    inputs: dict[str, Path]
    work: Path
    out: Path
    journal: Journal
    resources: Resources
    before_checkpoint: Callable[[], None] = lambda: None


StageFunction = Callable[[StageRequest], dict[str, float]]
"""Writes into `out` and returns the metrics by the field's names."""


@dataclass(frozen=True)
class StoredRun:
    """What a stage run left, and what it was made from.

    Attributes:
        stage: `linprobe`.
        recipe: As the stage had it.
        folder: Its outputs.
        encoder: Of its experiment; for `pretrain` absent.
        dataset: The prepared data.
        resources: Device, threads, workers of the evaluation.
    """

    stage: str
    recipe: Any
    folder: Path
    encoder: Path | None
    dataset: Path
    resources: Resources


Reevaluation = Callable[[StoredRun], dict[str, float]]
"""Computes a stage's metrics again from what it left."""
