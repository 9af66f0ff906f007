"""Gradients cut to a largest norm, all together or each tensor by itself."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


def clip_per_tensor(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Cut each gradient that is longer than `max_norm` to that length; return the largest length.

    Source: DINO's `clip_gradients`, with its 1e-6 in the quotient.
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    norms = torch._foreach_norm(grads)  # type: ignore[reportPrivateImportUsage]
    factors = [(max_norm / (norm + 1e-6)).clamp(max=1.0) for norm in norms]
    torch._foreach_mul_(grads, factors)  # type: ignore[reportPrivateImportUsage]
    return torch.stack(list(norms)).max()


CLIPPERS: dict[str, Callable[[Iterable[Tensor], float], Tensor]] = {
    "global": nn.utils.clip_grad_norm_,
    "per_tensor": clip_per_tensor,
}
"""By the value of `clip_mode`; each returns the norm that was there."""
