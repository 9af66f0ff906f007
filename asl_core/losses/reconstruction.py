"""Eq. 1-2: the pixel loss of MAE."""

from torch import Tensor


def reconstruction_loss(pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    r"""Compute the mean squared error over the removed patches.

    .. math::
        L_{MAE} = \frac{1}{|\eta|} \sum_{i \in \eta} \frac{1}{P} \lVert t_i - p_i \rVert^2

    Source: ASL, Eq. 1 (one patch) and Eq. 2; the norm is the mean over a patch's P values, as in
    the official MAE.

    Args:
        pred: Predicted patches.
        target: From `pixel_target`.
        mask: True where a patch was removed.

    Shape:
        - pred, target: (B, N, P). mask: (B, N), at least one True. Output: scalar, float32.
    """
    error = (pred.float() - target.float()).square().mean(dim=-1)  # (B, N)
    return (error * mask).sum() / mask.sum()
