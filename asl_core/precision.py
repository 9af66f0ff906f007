"""The precision that losses, targets and statistics are computed in."""

import contextlib

import torch
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """Return bfloat16 and float16 as float32; float32 and float64 stay what they are."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def full_precision(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Switch autocast off: inside it, a product of two float32 matrices is one in bfloat16."""
    if not torch.amp.is_autocast_available(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)
