"""The scheduler of this place: Slurm, or the fake one where a variable names it."""

import importlib
import os
from pathlib import Path

from pipeline.schedulers.port import Scheduler

VARIABLE = "ASL_FAKE_CLUSTER"
"""Names the folder; where it is set there is no Slurm."""


def find_scheduler(scratch: Path) -> Scheduler:
    """Return Slurm, or the fake cluster whose folder $ASL_FAKE_CLUSTER names.

    Args:
        scratch: The project's `.asl`; what is handed to Slurm lies there.
    """
    folder = os.environ.get(VARIABLE)
    if folder:
        return importlib.import_module("fake_scheduler").FakeScheduler(Path(folder))
    from pipeline.schedulers.slurm.scheduler import SlurmScheduler

    return SlurmScheduler(scratch / "slurm")
