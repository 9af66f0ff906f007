"""One model in several processes, each of which sees its part of a batch."""

import torch
from torch import nn

from asl_core import distributed


def distribute(model: nn.Module, device: torch.device) -> nn.Module:
    """Wrap for data-parallel training when there is more than one process."""
    if distributed.world_size() == 1:
        return model
    ids = [device.index] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(model, device_ids=ids)
