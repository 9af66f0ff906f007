"""What this machine has: GPUs, processors, memory. Reads only."""

import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

INSIDE = "ASL_POOL_GPUS"
"""Set in the jobs of a pool: the GPUs that it may hand out. CUDA_VISIBLE_DEVICES has the job's."""


def find_gpus() -> list[str]:
    """Return the UUIDs of NVIDIA's GPUs as nvidia-smi numbers them; none where there is no driver.

    `CUDA_VISIBLE_DEVICES` is left out of account.
    """
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        count = pynvml.nvmlDeviceGetCount()
        named = [pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(i))
                 for i in range(count)]  # fmt: skip
        return [name.decode() if isinstance(name, bytes) else name for name in named]
    except pynvml.NVMLError:
        return []
    finally:
        pynvml.nvmlShutdown()


def usable_gpus(
    visible: Sequence[int | str] | None, found: Sequence[str], environment: Mapping[str, str]
) -> tuple[str, ...]:
    """Return the names of the GPUs that a job may take.

    Args:
        visible: What cluster.yaml says. Where no driver can be asked it is believed.
        found: UUIDs of the machine's.
        environment: Of whoever submits; narrows the choice by CUDA_VISIBLE_DEVICES, in a job of
            the pool by what the pool may hand out.

    Raises:
        ValueError: There is no such GPU.
    """
    if visible is None:
        names = tuple(found)
    else:
        named = [_named(gpu, found) for gpu in visible]
        for gpu, name in zip(visible, named, strict=True):
            if name is None:
                raise ValueError(
                    f"visible_gpus names {gpu}, this machine has {', '.join(found) or 'none'}"
                )
        names = tuple(dict.fromkeys(name for name in named if name is not None))
    if (handed_out := environment.get(INSIDE)) is not None:
        kept = set(handed_out.split(","))
    elif (narrowed := environment.get("CUDA_VISIBLE_DEVICES")) is not None:
        entries = [entry.strip() for entry in narrowed.split(",") if entry.strip()]
        kept = {_named(int(e) if e.isdigit() else e, found) for e in entries}
    else:
        return names
    return tuple(name for name in names if name in kept)


def _named(gpu: int | str, found: Sequence[str]) -> str | None:
    """Return the name of a GPU, None where there is no such one."""
    if not found or str(gpu).startswith("MIG-"):  # NVML does not list parts of GPUs
        return str(gpu)
    if isinstance(gpu, int):
        return found[gpu] if 0 <= gpu < len(found) else None
    fitting = [name for name in found if name.startswith(gpu)]
    return fitting[0] if len(fitting) == 1 else None


def processors() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0))


def memory_megabytes() -> int:
    """Return the size of this machine's memory in units of 2**20 bytes."""
    return psutil.virtual_memory().total >> 20


def this_host() -> str:
    """Return the name of this machine."""
    return socket.gethostname()


def boot_id() -> str:
    """Return what tells this start of the machine from others."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return str(round(psutil.boot_time()))
