"""A stage's function, imported by name; this is where torch is loaded."""

import importlib

from pipeline.garbage import collect_as_usual
from pipeline.stages.request import StageFunction
from pipeline.stages.table import STAGES


def load_stage(stage: str) -> StageFunction:
    """Import a stage's module and return its function."""
    run = importlib.import_module(STAGES[stage].module).run
    collect_as_usual()
    return run
