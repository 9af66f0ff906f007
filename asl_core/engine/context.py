"""What surrounds a training run and changes none of its numbers. Standard library only."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from asl_core.engine.journal import Journal
from asl_core.recipes.optimisation import Resources


@dataclass(frozen=True)
class Rehearsal:
    """How far a run is tried out.

    Attributes:
        steps: Optimiser steps.
        warm_up: Of these, the first ones, which compile, allocate and fill the loader: not counted.
        file: Where the first process writes `asl_core.engine.rehearsal.Measured`.
    """

    file: Path
    steps: int = 12
    warm_up: int = 4


@dataclass(frozen=True)
class RunContext:
    """What surrounds a run and changes none of its numbers.

    Attributes:
        checkpoints: Folder of the run's checkpoints; a run resumes from what it finds there.
        journal: Where metrics go.
        resources: Device, threads, how often to checkpoint and to log.
        stage: What trains; metrics are named by it, `pretrain/loss`.
        name: Which one of them.
        before_checkpoint: Called by the first process before each one; raises if this process
            must not write any more.
        replay: Only compute the first steps again, for `witness.first_difference`: begin at step
            0 whatever the checkpoints are, write none, and end with `ReplayFinished`.
        rehearsal: Only try a few steps out, measure them, and go on as if training were done.
    """

    checkpoints: Path
    journal: Journal
    resources: Resources
    stage: str = "train"
    name: str = ""
    before_checkpoint: Callable[[], None] = lambda: None
    replay: bool = False
    rehearsal: Rehearsal | None = None

    @property
    def label(self) -> str:
        """The run's name in messages and on the progress bar."""
        return f"{self.stage} {self.name}".strip()
