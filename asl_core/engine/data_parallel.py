"""One model in several processes, each of which sees its part of a batch."""

from typing import TypeVar, cast

import torch
from torch import nn

from asl_core import distributed
from asl_core.engine.devices import pick_device
from asl_core.recipes.optimisation import Resources

Network = TypeVar("Network", bound=nn.Module)


def shares_batch_norm(resources: Resources) -> bool:
    """Return whether BatchNorm is to count over all processes: torch has that for GPUs only."""
    return distributed.world_size() > 1 and pick_device(resources).type == "cuda"


def share_batch_norm(model: Network, resources: Resources) -> Network:
    """Replace BatchNorm by one over all processes, where that can be."""
    if not shares_batch_norm(resources):
        return model
    return cast(Network, nn.SyncBatchNorm.convert_sync_batchnorm(model))


def distribute(model: nn.Module, device: torch.device) -> nn.Module:
    """Wrap for data-parallel training when there is more than one process."""
    if distributed.world_size() == 1:
        return model
    ids = [device.index] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(model, device_ids=ids)
