"""Tensors by name in a safetensors file."""

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from torch import Tensor


def save_weights(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors by name; whoever may read other new files may read this one.

    safetensors' own `save_file` makes files that only their owner can read.
    """
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    path.write_bytes(safetensors.torch.save(on_cpu))
