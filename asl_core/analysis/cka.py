"""Centred kernel alignment between two sets of features of the same images.

Source: Kornblith et al., 2019 (linear CKA); Nguyen et al., 2021 (unbiased estimator).
"""

import torch
from torch import Tensor


def unbiased_hsic(x: Tensor, y: Tensor) -> Tensor:
    """Compute the unbiased estimate HSIC_1 with linear kernels.

    Shape:
        - x: (M, D). y: (M, E), M > 3. Output: scalar; may be negative.
    """
    count = x.shape[0]
    k, m = x @ x.T, y @ y.T
    k.fill_diagonal_(0)
    m.fill_diagonal_(0)
    trace = (k * m).sum()
    sums = k.sum() * m.sum() / ((count - 1) * (count - 2))
    cross = 2 * (k.sum(dim=0) @ m.sum(dim=0)) / (count - 2)
    return (trace + sums - cross) / (count * (count - 3))


def unbiased_cka(x: Tensor, y: Tensor) -> Tensor:
    """Compute CKA from the unbiased estimate; about 0 for independent features.

    Shape:
        - x: (M, D). y: (M, E), M > 3. Output: scalar.
    """
    scale = (unbiased_hsic(x, x) * unbiased_hsic(y, y)).clamp_min(1e-24).sqrt()
    return unbiased_hsic(x, y) / scale


def cka_across_positions(tokens: Tensor, pairs: Tensor) -> Tensor:
    """Average unbiased CKA between pairs of positions: high when all carry one image-level code.

    Centred over the images, so that an offset common to all tokens does not count, and free of
    the basis that each position uses.

    Shape:
        - tokens: (M, N, D), M images. pairs: (Q, 2), int64. Output: scalar.
    """
    tokens = tokens.double()
    values = [unbiased_cka(tokens[:, p], tokens[:, q]) for p, q in pairs.tolist()]
    return torch.stack(values).mean()
