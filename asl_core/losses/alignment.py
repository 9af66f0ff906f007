"""Eq. 9-10: the one-to-one alignment of two predictions."""

import torch.nn.functional as F
from torch import Tensor


def alignment_loss(pred_ori: Tensor, pred_aug: Tensor, mask: Tensor) -> Tensor:
    r"""Compute the symmetric L1 between two predictions, each held fixed in turn.

    .. math::
        L_{SEM} = \frac{1}{|\eta|} \sum_{i \in \eta}
            \lVert a_i - \mathrm{sg}[b_i] \rVert_1 + \lVert \mathrm{sg}[a_i] - b_i \rVert_1

    Source: ASL, Eq. 9 (one patch) and Eq. 10 (mean over the removed patches). The norm is the
    mean over the P values of a patch; the paper leaves this open.

    Args:
        pred_ori: Prediction a, from the encoder's own features.
        pred_aug: Prediction b, from the augmented features.
        mask: True where a patch was removed.

    Shape:
        - pred_ori, pred_aug: (B, N, P). mask: (B, N), at least one True. Output: scalar, float32.

    Note:
        The value is twice the plain L1 distance; its gradient equals that of plain L1.
    """
    a, b = pred_ori.float(), pred_aug.float()
    distance = ((a - b.detach()).abs() + (a.detach() - b).abs()).mean(dim=-1)  # (B, N)
    return (distance * mask).sum() / mask.sum()


def cosine_alignment_loss(pred_ori: Tensor, pred_aug: Tensor, mask: Tensor) -> Tensor:
    """Compute the same with 1 - cos(a, b) per patch in place of the L1 distance.

    Source: ASL, Section 4.6, "the effect of alignment loss". Shapes as `alignment_loss`.
    """
    a, b = pred_ori.float(), pred_aug.float()
    distance = 2 - F.cosine_similarity(a, b.detach(), dim=-1)
    distance = distance - F.cosine_similarity(a.detach(), b, dim=-1)  # (B, N)
    return (distance * mask).sum() / mask.sum()
