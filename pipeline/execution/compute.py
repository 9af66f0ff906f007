"""What a stage computes with: what rounding depends on, and nothing else does."""

import os
import sys
from typing import Any

from asl_core.recipes.optimisation import Resources
from pipeline.execution.gpus import Gpus


def set_threads(resources: Resources, gpus: Gpus) -> None:
    """Set the number of compute threads; torch reads it when it is imported.

    The configured number; else one where a stage computes on CPUs, for another number rounds sums
    differently, and a result must not depend on how many cores there are; else those cores that
    loader workers leave. What the shell says, OMP_NUM_THREADS, does not count.
    """
    on_gpu = resources.device == "cuda" or (resources.device == "auto" and bool(gpus.uuids))
    free = len(os.sched_getaffinity(0)) - resources.num_workers if on_gpu else 1
    threads = str(resources.threads or max(1, free))
    os.environ |= {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    # a few microseconds of spinning: none at all halves the speed of small kernels, the default
    # slows every neighbour down twentyfold when there are more threads than cores
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")


def circumstances(resources: Resources) -> dict[str, str]:
    """Return what rounding depends on, as torch sees it now that a stage has loaded it."""
    torch: Any = sys.modules.get("torch")
    if torch is None:
        return {}
    on_gpu = resources.device != "cpu" and torch.cuda.is_available()
    return {
        "device": "cuda" if on_gpu else "cpu",
        "threads": str(torch.get_num_threads()),
        "kernels": torch.backends.cpu.get_cpu_capability(),
    }
