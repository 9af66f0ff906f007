"""Which GPUs this process may use, asked of NVIDIA's library. Reads only."""

import os


def find_gpus() -> tuple[tuple[str, ...], str | None]:
    """Return the UUIDs of the visible GPUs and the driver's version; nothing where there are none.

    A job sees the GPUs it was given: by cgroups, or by CUDA_VISIBLE_DEVICES.
    """
    try:
        import pynvml
    except ImportError:
        return (), None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return (), None
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        uuids = [_text(pynvml.nvmlDeviceGetUUID(handle)) for handle in handles]
        return tuple(_visible(uuids)), _text(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError:
        return (), None
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
