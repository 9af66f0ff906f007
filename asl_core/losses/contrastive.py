"""InfoNCE between images: each query among the keys of all images of the step."""

import torch
import torch.nn.functional as F
from torch import Tensor

from asl_core.distributed import gather_constant, gather_rows, rank
from asl_core.precision import at_least_float32, full_precision


def info_nce(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    r"""Compute the contrastive loss of queries against the keys of all processes.

    .. math::
        L = -2 T \frac{1}{B} \sum_i \log
            \frac{\exp(\hat q_i^\top \hat k_i / T)}{\sum_j \exp(\hat q_i^\top \hat k_j / T)}

    with vectors of length 1. The factor 2 T keeps the gradient's size when T changes.

    Source: MoCo v3's `contrastive_loss`, as CMAE and ccMIM use it.

    Args:
        queries: Of this process's images.
        keys: Of the same images; constants, whatever their history.
        temperature: T.

    Shape:
        - queries, keys: (B, C). Output: scalar, at least float32.
    """
    with full_precision(queries.device):
        q = F.normalize(at_least_float32(queries), dim=1)  # (B, C)
        k = gather_constant(F.normalize(at_least_float32(keys), dim=1))  # (G * B, C)
        own = torch.arange(len(q), device=q.device) + rank() * len(q)
        return 2 * temperature * F.cross_entropy(q @ k.T / temperature, own)


def symmetric_info_nce(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    r"""Compare two vectors of each image with those of all images of all processes.

    .. math::
        L = -\frac{1}{2B} \sum_i \left(
            \log \frac{\exp(\hat a_i^\top \hat b_i / T)}{\sum_j \exp(\hat a_i^\top \hat b_j / T)}
            + \log \frac{\exp(\hat b_i^\top \hat a_i / T)}{\sum_j \exp(\hat b_i^\top \hat a_j / T)}
        \right)

    with vectors of length 1. Gradients reach both, also as what the others are compared with.

    Args:
        first: a, of this process's images.
        second: b, of the same.
        temperature: T.

    Shape:
        - first, second: (B, C). Output: scalar, at least float32.
    """
    with full_precision(first.device):
        a, b = (F.normalize(at_least_float32(x), dim=1) for x in (first, second))  # (B, C)
        own = torch.arange(len(a), device=a.device) + rank() * len(a)
        of_a = F.cross_entropy(a @ gather_rows(b).T / temperature, own)
        of_b = F.cross_entropy(b @ gather_rows(a).T / temperature, own)
        return (of_a + of_b) / 2
