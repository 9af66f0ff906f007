"""The scheduler of this place: Slurm, or the fake one where a variable names it."""

import os
from pathlib import Path

from pipeline.adapters.fake_scheduler import VARIABLE, FakeScheduler
from pipeline.ports import Scheduler


def find_scheduler(scratch: Path) -> Scheduler:
    """Return Slurm, or the fake cluster whose folder $ASL_FAKE_CLUSTER names.

    Args:
        scratch: The project's `.asl`; what is handed to Slurm lies there.
    """
    folder = os.environ.get(VARIABLE)
    if folder:
        return FakeScheduler(Path(folder))
    from pipeline.adapters.scheduler import SlurmScheduler

    return SlurmScheduler(scratch / "slurm")
