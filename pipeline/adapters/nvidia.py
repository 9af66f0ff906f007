"""Which GPUs this process may use, asked of NVIDIA's library. Reads only."""

import os

from pipeline.ports import Gpus


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


def _visible(uuids: list[str]) -> list[str]:
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return uuids
    chosen = [name.strip() for name in named.split(",") if name.strip()]
    numbers = [int(name) for name in chosen if name.isdigit() and int(name) < len(uuids)]
    return [uuids[number] for number in numbers] or [u for u in uuids if u in chosen]


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
