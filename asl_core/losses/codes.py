"""Cross entropy of the codes of hidden patches."""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from asl_core.precision import at_least_float32


class CodeLoss(NamedTuple):
    """Scalars: the mean cross entropy, and the share of codes whose logit is the largest."""

    loss: Tensor
    accuracy: Tensor


def code_loss(
    logits: Tensor, codes: Tensor, counted: Tensor | None = None, count: Tensor | None = None
) -> CodeLoss:
    """Compare logits of patches with their codes; the mean over all patches.

    Where images have unequal numbers of patches it is still the mean over patches, not over images,
    and over those of all processes: each divides its sum by the mean number, so that the mean of
    their losses, and of their gradients, is that of one process with all images.

    Source: BEiT, Eq. 2 and `engine_for_pretraining.py`.

    Args:
        logits: Of each code.
        codes: What they should be.
        counted: Which patches count; absent: all.
        count: How many these are in a process, the mean over the processes; with `counted`.

    Shape:
        - logits: (B, R, K). codes: (B, R), int64. counted: (B, R), bool. count: scalar.
    """
    losses = F.cross_entropy(
        at_least_float32(logits).flatten(0, 1), codes.flatten(), reduction="none"
    )  # (B R,)
    right = (logits.argmax(-1) == codes).flatten().to(losses.dtype)  # (B R,)
    if counted is None or count is None:
        return CodeLoss(losses.mean(), right.mean())
    weights = counted.flatten().to(losses.dtype)
    return CodeLoss((losses * weights).sum() / count, (right * weights).sum() / count)
