"""R-MAE's loss of region maps."""

import torch.nn.functional as F
from torch import Tensor

from asl_core.precision import at_least_float32


def region_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Return the binary cross entropy of predicted region maps.

    The mean over the pixels of a patch, the regions and the removed patches, all of which have the
    same number in every image.

    Source: R-MAE, `forward_loss`, with `bg_loss_weight: 1.0`.

    Shape:
        - logits: (B, R, M, P), of the M removed patches. target: the same, 1 inside of the region,
          0 outside. Output: scalar, at least float32.
    """
    logits = at_least_float32(logits)
    return F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype))
