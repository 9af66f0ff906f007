"""InfoNCE between images: each query among the keys of all images of the step."""

import torch
import torch.nn.functional as F
from torch import Tensor

from asl_core.distributed import gather_constant, rank
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
