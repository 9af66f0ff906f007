"""Which GPUs a process may use, with a stand-in for NVIDIA's library."""

import sys
from types import SimpleNamespace

import pytest

from pipeline.execution.gpus import Gpus, find_gpus


class NoDriverError(Exception):
    """Stands for NVMLError."""


def library(count: int, broken: bool = False) -> SimpleNamespace:
    def start() -> None:
        if broken:
            raise NoDriverError

    return SimpleNamespace(
        NVMLError=NoDriverError,
        nvmlInit=start,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: count,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetUUID=lambda handle: f"GPU-{handle}".encode(),
        nvmlDeviceGetName=lambda handle: "H100" if handle else "A100",
        nvmlSystemGetDriverVersion=lambda: "550.1",
    )


@pytest.mark.parametrize(
    ("visible", "uuids", "models"),
    [
        (None, ("GPU-0", "GPU-1", "GPU-2"), ("A100", "H100", "H100")),
        ("2,0", ("GPU-2", "GPU-0"), ("H100", "A100")),
        ("GPU-1", ("GPU-1",), ("H100",)),
        ("", (), ()),
    ],
)
def test_visible_gpus_in_their_order_with_their_names(
    monkeypatch: pytest.MonkeyPatch,
    visible: str | None,
    uuids: tuple[str, ...],
    models: tuple[str, ...],
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", library(3))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert find_gpus() == Gpus(uuids, models, "550.1")


def test_a_machine_without_a_driver_has_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", library(1, broken=True))
    assert find_gpus() == Gpus()
    assert Gpus().tags() == {"gpu.uuids": "none", "gpu.model": "none", "gpu.driver": "none"}
