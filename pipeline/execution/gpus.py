"""Which GPUs this process may use, asked of NVIDIA's library. Reads only."""

import contextlib
import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Gpus:
    """The GPUs that a process may use.

    Attributes:
        uuids: One each.
        models: Their names, `NVIDIA H100 80GB HBM3`, one each.
        driver: Version of the driver.
    """

    uuids: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    driver: str | None = None

    def tags(self) -> dict[str, str]:
        """Return what a run says of them."""
        return {
            "gpu.uuids": ",".join(self.uuids) or "none",
            "gpu.model": ", ".join(dict.fromkeys(self.models)) or "none",
            "gpu.driver": self.driver or "none",
        }


def find_gpus() -> Gpus:
    """Return the visible GPUs; none where there are none.

    A job sees the GPUs it was given: by cgroups, or by CUDA_VISIBLE_DEVICES.
    """
    try:
        import pynvml
    except ImportError:
        return Gpus()
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return Gpus()
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        models = {
            _text(pynvml.nvmlDeviceGetUUID(handle)): _text(pynvml.nvmlDeviceGetName(handle))
            for handle in handles
        }
        visible = _visible(list(models))
        driver = _text(pynvml.nvmlSystemGetDriverVersion())
        return Gpus(tuple(visible), tuple(models[uuid] for uuid in visible), driver)
    except pynvml.NVMLError:
        return Gpus()
    finally:
        pynvml.nvmlShutdown()


def energy_counters() -> dict[int, float | None]:
    """Return the visible GPUs, by NVML's numbers, each with the joules that it has counted so far.

    None where a GPU counts none: those before Volta, partitions (MIG). The counter begins anew when
    the driver is loaded.
    """
    try:
        import pynvml
    except ImportError:
        return {}
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return {}
    found: dict[int, float | None] = {}
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        uuids = [_text(pynvml.nvmlDeviceGetUUID(handle)) for handle in handles]
        for index in map(uuids.index, _visible(uuids)):
            found[index] = None
            with contextlib.suppress(pynvml.NVMLError):
                found[index] = pynvml.nvmlDeviceGetTotalEnergyConsumption(handles[index]) / 1000
    except pynvml.NVMLError:
        pass
    finally:
        pynvml.nvmlShutdown()
    return found


def _visible(uuids: list[str]) -> list[str]:
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return uuids
    chosen = [name.strip() for name in named.split(",") if name.strip()]
    numbers = [int(name) for name in chosen if name.isdigit() and int(name) < len(uuids)]
    return [uuids[number] for number in numbers] or [u for u in uuids if u in chosen]


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
