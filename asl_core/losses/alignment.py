"""Eq. 9-10: the one-to-one alignment of two predictions."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from asl_core.precision import at_least_float32


def alignment_loss(
    pred_ori: Tensor, pred_aug: Tensor, reduction: Literal["mean", "sum"] = "mean"
) -> Tensor:
    r"""Compute the symmetric L1 between two predictions, each held fixed in turn.

    .. math::
        L_{SEM} = \frac{1}{|\eta|} \sum_{i \in \eta}
            \lVert a_i - \mathrm{sg}[b_i] \rVert_1 + \lVert \mathrm{sg}[a_i] - b_i \rVert_1

    Source: ASL, Eq. 9 (one token) and Eq. 10 (mean over the tokens).

    Args:
        pred_ori: Prediction a, from the encoder's own features, of the tokens to align.
        pred_aug: Prediction b, from the augmented features, of the same tokens.
        reduction: The norm is the mean over the P values of a token, or their sum; the paper
            leaves this open.

    Shape:
        - pred_ori, pred_aug: (B, T, P). Output: scalar, at least float32.

    Note:
        The value is twice the plain L1 distance; its gradient equals that of plain L1.
    """
    a, b = at_least_float32(pred_ori), at_least_float32(pred_aug)
    distance = (a - b.detach()).abs() + (a.detach() - b).abs()  # (B, T, P)
    return distance.mean() if reduction == "mean" else distance.sum(dim=-1).mean()


def random_sign_loss(
    pred_ori: Tensor, pred_aug: Tensor, signs: Tensor, reduction: Literal["mean", "sum"] = "mean"
) -> Tensor:
    r"""Compute the value of `alignment_loss` with a gradient of its size that aligns nothing.

    The gradient of plain L1 is :math:`\mathrm{sign}(a - b)` for a and its opposite for b, each
    divided by the number of values; here a drawn sign stands in its place, and where a = b the
    gradient is 0 as there. A control, not the paper's.

    Shape:
        - pred_ori, pred_aug: as for `alignment_loss`. signs: (B, T, P), 1 or -1.
    """
    a, b = at_least_float32(pred_ori), at_least_float32(pred_aug)
    value = alignment_loss(a.detach(), b.detach(), reduction)
    slope = signs.to(a.dtype) * (a != b) * (a - b)  # (B, T, P)
    slope = slope.mean() if reduction == "mean" else slope.sum(dim=-1).mean()
    return value + (slope - slope.detach())


def cosine_alignment_loss(pred_ori: Tensor, pred_aug: Tensor) -> Tensor:
    """Compute the same with 1 - cos(a, b) per token in place of the L1 distance.

    Source: ASL, Section 4.6, "the effect of alignment loss". Shapes as `alignment_loss`.
    """
    a, b = at_least_float32(pred_ori), at_least_float32(pred_aug)
    first = 1 - F.cosine_similarity(a, b.detach(), dim=-1)  # (B, T)
    second = 1 - F.cosine_similarity(a.detach(), b, dim=-1)
    return (first + second).mean()
