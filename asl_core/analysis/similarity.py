"""Figure 1: representational similarity among the tokens of an image.

The paper gives no formula. The primary number is the mean cosine between the patch tokens of one
image after the final norm; companions tell whether it stems from a common offset, from the
objects, or from a collapse of rank.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def mean_token_cosine(tokens: Tensor) -> Tensor:
    r"""Compute the mean cosine over all pairs of different tokens of each image.

    .. math::
        s(x) = \frac{1}{N (N - 1)} \sum_{i \ne j} \hat t_i \cdot \hat t_j
             = \frac{\lVert \sum_i \hat t_i \rVert^2 - N}{N (N - 1)}

    The right-hand form needs O(N D) and no matrix of pairs.

    Shape:
        - tokens: (B, N, D), N > 1. Output: (B,), float32.
    """
    units = F.normalize(tokens.float(), dim=-1)
    count = tokens.shape[1]
    total = units.sum(dim=1).square().sum(dim=-1)  # (B,)
    return (total - count) / (count * (count - 1))


def effective_rank(tokens: Tensor) -> Tensor:
    """Compute exp(entropy of the normalised singular values) of each image's tokens.

    Source: Roy and Vetterli, 2007.

    Shape:
        - tokens: (B, N, D). Output: (B,), between 1 and min(N, D).
    """
    values = torch.linalg.svdvals(tokens.float())  # (B, min(N, D))
    shares = values / values.sum(dim=-1, keepdim=True).clamp_min(1e-12)
    return torch.special.entr(shares).sum(dim=-1).exp()


def patch_objects(masks: Tensor, patch_size: int) -> Tensor:
    """Give each patch the object that covers most of it.

    A patch belongs to an object that covers at least half of its pixels; the others, background
    among them, are -1.

    Shape:
        - masks: (K, H, W), bool; H and W multiples of the patch. Output: (N,), int64.
    """
    height, width = masks.shape[-2:]
    num_patches = (height // patch_size) * (width // patch_size)
    if len(masks) == 0:
        return torch.full((num_patches,), -1)
    shares = F.avg_pool2d(masks[None].float(), patch_size)[0].flatten(1)  # (K, N)
    share, owner = shares.max(dim=0)
    return torch.where(share >= 0.5, owner, -1)


def inside_and_across(tokens: Tensor, objects: Tensor) -> tuple[Tensor, Tensor]:
    """Compute sums of cosines between patches of one object, and of different objects.

    Shape:
        - tokens: (N, D). objects: (N,), -1 where a patch belongs to none.
        - Output: (inside, across), each (2,): sum of cosines and number of pairs.
    """
    owned = objects >= 0
    units = F.normalize(tokens[owned].float(), dim=-1)  # (M, D)
    cosines = units @ units.T
    same = objects[owned][:, None] == objects[owned][None, :]
    different_tokens = ~torch.eye(len(units), dtype=torch.bool)
    inside, across = same & different_tokens, ~same
    return tuple(  # type: ignore[return-value]
        torch.stack([(cosines * pairs).sum(), pairs.sum().float()]) for pairs in (inside, across)
    )
