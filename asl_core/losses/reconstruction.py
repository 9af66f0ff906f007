"""Eq. 1-2: the pixel loss of MAE."""

from torch import Tensor

from asl_core.precision import at_least_float32


def reconstruction_loss(pred: Tensor, target: Tensor) -> Tensor:
    r"""Compute the mean squared error over the removed patches.

    .. math::
        L_{MAE} = \frac{1}{|\eta|} \sum_{i \in \eta} \frac{1}{P} \lVert t_i - p_i \rVert^2

    Source: ASL, Eq. 1 (one patch) and Eq. 2; the norm is the mean over a patch's P values, as in
    the official MAE. The number of removed patches is the same in every image.

    Args:
        pred: Predictions of the removed patches.
        target: Their pixels, from `pixel_target`.

    Shape:
        - pred, target: (B, R, P). Output: scalar, at least float32.
    """
    return (at_least_float32(pred) - at_least_float32(target)).square().mean()
