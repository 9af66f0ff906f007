"""What a stage is given, what it must give back, and what is left of it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from asl_core.engine.context import Rehearsal
from asl_core.engine.journal import Journal
from asl_core.recipes.optimisation import Resources

DETAILS = "details"
"""Role of the output that people look at: journal, pictures, own weights. No stage reads it, but
for a pre-training that begins with all that another ended with."""

START = "start"
"""Role of the weights that a pre-training begins with: a file, a folder with an encoder, or the
details of another pre-training."""


Recipe_co = TypeVar("Recipe_co", covariant=True)


@dataclass(frozen=True)
class StageRequest(Generic[Recipe_co]):
    """One stage run: the same wherever it is called from.

    Attributes:
        stage: Name of the stage, `pretrain`.
        key: Name of the entry of params.yaml, `asl`.
        recipe: Resolved dataclass of that entry; for `report` the whole `Params`.
        inputs: Paths by role, as the table of stages has them. `dataset`: data/<name>; `encoder`:
            runs/encoder/<key>; `held_out`: runs/held_out/<key>; `imported`: the folder of an
            experiment that is not trained here; `start`: weights to begin with;
            `prepare` has `data_root`, against which relative paths of a dataset are resolved;
            `report` has `suite`, the suite's folder.
        work: Scratch that survives a kill; checkpoints go to work/"ckpt".
        outputs: Empty folders by role; what is written there becomes the stage's outputs.
        journal: Where metrics, datasets and pictures are recorded.
        resources: Device, threads, workers.
        before_checkpoint: To be called before each checkpoint; raises if another process has
            taken this run over.
        page_of: Finds the address at which a run is shown to people, by its fingerprint.
        replay: Train the first steps only, to compare them with what another run wrote down.
        rehearsal: Train a few steps only, to measure them, and go on as if training were done.
        features: Folder of frozen features that evaluations share, of the code that runs; None:
            each computes its own.
    """

    stage: str
    key: str
    recipe: Recipe_co
    inputs: dict[str, Path]
    work: Path
    outputs: dict[str, Path]
    journal: Journal
    resources: Resources
    before_checkpoint: Callable[[], None] = lambda: None
    page_of: Callable[[str], str | None] = lambda _: None
    replay: bool = False
    features: Path | None = None
    rehearsal: Rehearsal | None = None

    @property
    def out(self) -> Path:
        """The output that people look at: journal, pictures, numbers in detail."""
        return self.outputs[DETAILS]


StageFunction = Callable[[StageRequest[Any]], dict[str, float]]
"""Takes the recipe of its own stage, of which all that is known elsewhere is its name; writes into
`out` and returns the metrics by the field's names, nan for one that the data do not give."""


@dataclass(frozen=True)
class StoredRun(Generic[Recipe_co]):
    """What a stage run left, and what it was made from.

    Attributes:
        recipe: As the stage had it.
        folder: What people look at of its outputs.
        inputs: Paths by role.
        resources: Device, threads, workers of the evaluation.
        outputs: Where its other outputs are, by role: what later stages read.
        again: Where to write these again, as far as stored weights tell them: to be compared.
    """

    recipe: Recipe_co
    folder: Path
    inputs: dict[str, Path]
    resources: Resources
    outputs: dict[str, Path] = field(default_factory=dict[str, Path])
    again: dict[str, Path] = field(default_factory=dict[str, Path])
