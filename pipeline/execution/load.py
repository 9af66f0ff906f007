"""A stage's function, imported by name; this is where torch is loaded."""

import importlib

from pipeline.stages.request import StageFunction
from pipeline.stages.table import STAGES


def load_stage(stage: str) -> StageFunction:
    """Import a stage's module and return its function."""
    return importlib.import_module(STAGES[stage].module).run
