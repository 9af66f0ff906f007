"""torch.compile for the network of a run, and its replay as CUDA graphs."""

import torch
from torch import nn

from asl_core import distributed
from asl_core.errors import InputError
from asl_core.recipes.optimisation import Resources


def compile_network(
    network: nn.Module, resources: Resources, device: torch.device, batch_size: int
) -> None:
    """Compile a network in place as the resources say.

    Graphs are torch's "reduce-overhead": forward and backward are recorded once and replayed with
    one launch each. What is drawn (masks, dropout, crops) is made outside of them, by functions of
    the step that are `not_compiled`, and copied into their inputs.

    Raises:
        InputError: Graphs were asked for where they would be wrong: gradients of several
            micro-batches, or of processes that wait for each other, live beyond one replay.
    """
    if not resources.compile:
        return
    graphs = resources.cuda_graphs and device.type == "cuda"
    share = batch_size // distributed.world_size()
    if graphs and (resources.micro_batch_size or share) < share:
        raise InputError(
            f"cuda_graphs takes a step in one pass, micro_batch_size {resources.micro_batch_size} "
            f"splits its {share} images; remove one of them from cluster.yaml"
        )
    if graphs and distributed.world_size() > 1:
        raise InputError("cuda_graphs is for one process; remove it from cluster.yaml")
    network.compile(mode="reduce-overhead" if graphs else None)
