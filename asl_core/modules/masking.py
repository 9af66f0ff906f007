"""Which patches the encoder sees."""

import torch
from torch import Tensor

from asl_core.protocol import Draw, Mask
from asl_core.randomness import derive_seed, uniform


def random_mask(noise: Tensor, mask_ratio: float) -> Mask:
    """Keep the int(N * (1 - mask_ratio)) patches of smallest noise.

    Source: the random mask strategy of MAE; Section 3.1.1 of the ASL paper.

    Shape:
        - noise: (B, N), uniform in [0, 1).
    """
    num_keep = int(noise.shape[1] * (1 - mask_ratio))
    # stable: equal noise is possible in float32 and must not depend on the device
    ids_shuffle = torch.argsort(noise, dim=1, stable=True)
    return Mask(ids_shuffle[:, :num_keep], ids_shuffle[:, num_keep:])


def block_grid_mask(noise: Tensor, mask_ratio: float, grid_size: int) -> Mask:
    """Keep the int(N / 4 * (1 - mask_ratio)) blocks of 2 x 2 patches of smallest noise.

    Source: the released code of CMAE.

    Shape:
        - noise: (B, N / 4), a number for each block, row by row; N = grid_size^2, even.
    """
    half = grid_size // 2
    blocks = torch.argsort(noise, dim=1, stable=True)  # (B, N / 4)
    first = blocks // half * (2 * grid_size) + blocks % half * 2  # upper left patch of each
    ids = torch.stack([first, first + 1, first + grid_size, first + grid_size + 1], dim=2)
    num_keep = int(noise.shape[1] * (1 - mask_ratio))
    return Mask(ids[:, :num_keep].flatten(1), ids[:, num_keep:].flatten(1))


def mask_of(removed: Tensor, num_removed: int) -> Mask:
    """Return the same split as indices, in the order of the image.

    Shape:
        - removed: (B, N), bool, `num_removed` in each row.
    """
    ids = torch.argsort(removed.to(torch.uint8), dim=1, stable=True)
    num_keep = removed.shape[1] - num_removed
    return Mask(ids[:, :num_keep], ids[:, num_keep:])


def draw_mask(indices: Tensor, draw: Draw, num_patches: int, mask_ratio: float) -> Mask:
    """Draw a mask for each sample; a function of seed, step and sample.

    Shape:
        - indices: (B,), identities of the samples.
    """
    seed = derive_seed(draw.seed, "mask", draw.step)
    return random_mask(uniform(seed, indices, (num_patches,)), mask_ratio)


def gather_tokens(tokens: Tensor, ids: Tensor) -> Tensor:
    """Pick tokens by index.

    Shape:
        - tokens: (B, N, D). ids: (B, V). Output: (B, V, D).
    """
    return torch.gather(tokens, 1, ids.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
