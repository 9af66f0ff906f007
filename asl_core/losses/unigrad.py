"""SIM's loss: predictions near their targets, and away from what targets have in common."""

from torch import Tensor

from asl_core.distributed import mean_over_processes
from asl_core.precision import at_least_float32, full_precision


def token_correlation(target: Tensor) -> Tensor:
    """Return C = E[t t^T] over all tokens of all processes, without gradient.

    Shape:
        - target: (B, N, D). Output: (D, D), at least float32.
    """
    with full_precision(target.device):
        tokens = at_least_float32(target.detach()).flatten(0, 1)  # (B N, D)
        return mean_over_processes(tokens.T @ tokens / len(tokens))


def unigrad_loss(
    pred: Tensor, target: Tensor, correlation: Tensor, negative_weight: float
) -> Tensor:
    r"""Compute SIM's loss.

    .. math::
        L = \frac{1}{D} \left( E \lVert p - t \rVert^2 + \lambda\, E[p^\top C p] \right)

    The second term is the mean squared product of a prediction with all targets: what would take a
    matrix of all tokens against all is a product with C.

    Source: UniGrad (Tao et al., 2021), as SIM uses it.

    Shape:
        - pred, target: (B, N, D). correlation: (D, D). Output: scalar, at least float32.
    """
    with full_precision(pred.device):
        p, t = at_least_float32(pred), at_least_float32(target.detach())
        positive = (p - t).square().sum(-1).mean()
        negative = ((p @ correlation) * p).sum(-1).mean()
        return (positive + negative_weight * negative) / p.shape[-1]
