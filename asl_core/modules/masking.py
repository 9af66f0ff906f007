"""Which patches the encoder sees."""

from typing import NamedTuple

import torch
from torch import Tensor


class Mask(NamedTuple):
    """A random split of the patches into visible and removed.

    Attributes:
        ids_keep: Indices of the visible patches, in the order they are fed, (B, V).
        ids_restore: Position of each patch in [visible, removed], (B, N).
        mask: True where a patch was removed, (B, N).
    """

    ids_keep: Tensor
    ids_restore: Tensor
    mask: Tensor


def random_mask(noise: Tensor, mask_ratio: float) -> Mask:
    """Keep the int(N * (1 - mask_ratio)) patches of smallest noise.

    Source: the random mask strategy of MAE; Section 3.1.1 of the ASL paper.

    Shape:
        - noise: (B, N), uniform in [0, 1).
    """
    num_keep = int(noise.shape[1] * (1 - mask_ratio))
    # stable: equal noise is possible in float32 and must not depend on the device
    ids_shuffle = torch.argsort(noise, dim=1, stable=True)
    ids_restore = torch.argsort(ids_shuffle, dim=1)
    mask = ids_restore >= num_keep
    return Mask(ids_shuffle[:, :num_keep], ids_restore, mask)


def gather_tokens(tokens: Tensor, ids: Tensor) -> Tensor:
    """Pick tokens by index.

    Shape:
        - tokens: (B, N, D). ids: (B, V). Output: (B, V, D).
    """
    return torch.gather(tokens, 1, ids.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
