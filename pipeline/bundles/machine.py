"""The machine that a bundle runs on, without a library for it. Reads only."""

import os
import platform
import socket
import sys
from pathlib import Path
from typing import Any

from pipeline.execution.gpus import Gpus, find_gpus

_DRIVER = Path("/proc/driver/nvidia/version")


def visible_gpus() -> Gpus:
    """Return the GPUs before torch is loaded; where nobody can say which, that there are some."""
    found = find_gpus()
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if found.uuids or hidden or not any(Path("/dev").glob("nvidia[0-9]*")):
        return found
    return Gpus(uuids=("unknown",), models=("unknown",), driver=_driver())


def gpus_of_torch() -> Gpus:
    """Return the GPU that torch computes on, once it is loaded."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return Gpus()
    seen = torch.cuda.get_device_properties(torch.cuda.current_device())
    return Gpus((f"GPU-{seen.uuid}",), (str(seen.name),), _driver())


def machine_facts() -> dict[str, str]:
    """Return what is known of this machine, now that a stage has been loaded."""
    torch: Any = sys.modules.get("torch")
    return {
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": "none" if torch is None else str(torch.__version__),
        "cpus": str(len(os.sched_getaffinity(0))),
        **gpus_of_torch().tags(),
    }


def _driver() -> str | None:
    """Return the version of NVIDIA's driver as its module says it."""
    try:
        words = _DRIVER.read_text(encoding="ascii", errors="replace").split("\n")[0].split()
    except OSError:
        return None
    return next((word for word in words if word[0].isdigit() and "." in word), None)
