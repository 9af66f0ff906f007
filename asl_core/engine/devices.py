"""Where a run computes: device, threads, precision."""

import contextlib
import os
import warnings
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from asl_core.data.loaders import map_tensors
from asl_core.errors import InputError
from asl_core.ranks import ranks_of
from asl_core.recipes.optimisation import Resources
from asl_core.wording import counted

Batch = TypeVar("Batch")
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""What autocast computes products in; fp32 has none."""


def pick_device(resources: Resources) -> torch.device:
    """Return this process's device: its GPU where there is one, the CPU otherwise.

    Raises:
        InputError: CUDA was asked for and there is none, or none for this process.
    """
    if resources.device == "cpu" or (resources.device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise InputError("device cuda was asked for, but torch sees no GPU; look at "
                         "nvidia-smi on this node, or set device: cpu in cluster.yaml")  # fmt: skip
    ranks, visible = ranks_of(os.environ), torch.cuda.device_count()
    if ranks.local_rank >= visible:
        raise InputError(
            f"LOCAL_RANK is {ranks.local_rank}, but this process sees "
            f"{counted(visible, 'GPU')}; start one process per GPU of a machine"
        )
    device = torch.device("cuda", ranks.local_rank)
    torch.cuda.set_device(device)
    return device


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[object]:
    """Return autocast to bf16 or fp16 for the network; for fp32 and tf32 `float32_products`."""
    if precision not in HALF:
        return float32_products(precision)
    if device.type == "cpu":
        return _autocast_on_cpu(HALF[precision])
    return torch.autocast(device.type, dtype=HALF[precision])


@contextlib.contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """Let GPUs round the factors of float32 products to TF32 meanwhile, or keep them whole.

    Both as torch is told, and for backward passes too if they run inside. A CPU has no TF32.
    """
    switches: list[Any] = [torch.backends.cuda.matmul, torch.backends.cudnn]
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch in switches:
            switch.allow_tf32 = precision == "tf32"
        yield
    finally:
        for switch, allowed in zip(switches, before, strict=True):
            switch.allow_tf32 = allowed


def require_precision(precision: str, device: torch.device) -> None:
    """Refuse a precision that torch would leave out with a warning and compute in float32.

    Raises:
        InputError: This torch has no such autocast on this device.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with autocast(device, precision):
            there = torch.is_autocast_enabled(device.type)
    if precision in HALF and not there:
        raise InputError(
            f"precision {precision}: torch {torch.__version__} cannot compute in it on a "
            f"{device.type}; use fp32, or bf16 where there is that"
        )


@contextlib.contextmanager
def _autocast_on_cpu(dtype: torch.dtype) -> Iterator[None]:
    """Switch it on, and off the fused attention: its bf16 gradient takes 15 times float32's."""
    with torch.autocast("cpu", dtype=dtype), sdpa_kernel(SDPBackend.MATH):
        yield


def move(batch: Batch, device: torch.device) -> Batch:
    """Move every tensor in a batch (tuples, lists, dicts, dataclasses), without waiting."""
    return map_tensors(batch, lambda tensor: tensor.to(device, non_blocking=True))
