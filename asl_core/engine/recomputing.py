"""Memory for time: activations that are thrown away and computed again when gradients need them."""

from collections.abc import Callable
from typing import Any

from timm.layers.attention import Attention
from timm.layers.mlp import Mlp
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def recompute_activations(network: nn.Module) -> None:
    """Keep of every attention and MLP of a vision transformer its input alone.

    What is inside, nine tenths of what a block keeps, is computed twice; numbers stay what they
    are, to the bit, as random numbers are drawn again alike.
    """
    for module in network.modules():
        if isinstance(module, Attention | Mlp):
            module.forward = _recomputed(module.forward)


def _recomputed(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(*inputs: Any, **options: Any) -> Tensor:
        return checkpoint(forward, *inputs, use_reentrant=False, **options)

    return run
