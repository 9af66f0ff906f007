"""What an attempt at a stage run is given and uses, for its journal: tags of usage_tags.py.

Asks twice, at the beginning and at the end; a machine that cannot be asked stops nothing.
"""

import os
import resource
from collections.abc import Callable, Mapping

from asl_core.ranks import ranks_of
from asl_core.recipes.optimisation import Resources
from pipeline.execution.gpus import energy_counters
from pipeline.jobs.usage_tags import (
    CPU_SECONDS,
    CPUS,
    GPU_JOULES,
    GPUS,
    INDICES,
    PROCESSES,
)
from pipeline.schedulers.variables import JOB_ID

Counters = Callable[[], Mapping[int, float | None]]


class Meter:
    """Counts from the moment when it is made.

    Args:
        resources: Of the stage.
        counters: Returns joules by GPU; see `energy_counters`.
    """

    def __init__(self, resources: Resources, counters: Counters = energy_counters) -> None:
        self._counters = counters
        self._processes = ranks_of(os.environ).world_size
        self._cpus = _threads() + resources.num_workers
        self._cpu_s, found = _cpu_seconds(), dict(counters())
        # a job is given all that it sees; another process takes the first, whatever is beside it
        most = None if JOB_ID in os.environ else self._processes
        self._joules = dict(list(found.items())[:most])

    def allotted(self, device: str) -> dict[str, str]:
        """Return what the run was given: threads and workers, and GPUs of this machine.

        Args:
            device: On which it computes: cuda or cpu.
        """
        tags = {PROCESSES: str(self._processes), CPUS: str(self._cpus * self._processes)}
        if device != "cuda":
            return {**tags, GPUS: "0"}
        if not self._joules:  # NVIDIA's library is not there, or does not say which
            return tags
        return {**tags, GPUS: str(len(self._joules)), INDICES: ",".join(map(str, self._joules))}

    def used(self) -> dict[str, str]:
        """Return what was used since: processor time, and energy of the GPUs if all count it."""
        tags = {CPU_SECONDS: f"{_cpu_seconds() - self._cpu_s:.3f}"}
        if not self._joules:
            return tags
        now = self._counters()
        spent = [
            after - before
            for index, before in self._joules.items()
            if before is not None and (after := now.get(index)) is not None
        ]
        if len(spent) == len(self._joules) and min(spent) >= 0:  # else a driver was loaded anew
            tags[GPU_JOULES] = f"{sum(spent):.1f}"
        return tags


def _threads() -> int:
    said = os.environ.get("OMP_NUM_THREADS", "")
    return int(said) if said.isdigit() else 1


def _cpu_seconds() -> float:
    """Return the processor time of this process and of its children that have ended."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    found = [resource.getrusage(kind) for kind in kinds]
    return sum(each.ru_utime + each.ru_stime for each in found)
