"""Codes of patches by the nearest of k centres, which k-means has found.

A patch is normalised as MAE's target is, x = (p - mean(p)) / sqrt(var(p) + 1e-6), with pixels in
[0, 1] and the unbiased variance; its code is argmin_k |x - c_k|^2 = argmax_k (x c_k - |c_k|^2 / 2).
"""

import torch
from torch import Tensor, nn

from asl_core.engine.devices import float32_products
from asl_core.modules.patches import patchify
from asl_core.precision import full_precision

_CHUNK = 2**24
"""Products of patches and centres that are in memory at once: 64 MiB."""


class PatchClusters(nn.Module):
    """A tokenizer: centres of clusters of normalised patches. Nothing of it is trained.

    Args:
        centres: (K, P), P = 3 p^2, row, column, channel.
        patch_size: Side of a patch in pixels, p.
    """

    kind = "kmeans"
    centres: Tensor

    def __init__(self, centres: Tensor, patch_size: int) -> None:
        super().__init__()
        self.patch_pixels = patch_size
        self.register_buffer("centres", centres)
        self.eval()

    @property
    def num_codes(self) -> int:
        """Number of centres, K."""
        return len(self.centres)

    @torch.no_grad()
    def codes(self, images: Tensor) -> Tensor:
        """Return the code of each patch, row by row; of equally near centres the lowest.

        Shape:
            - images: (B, 3, S, S), uint8, S a multiple of p. Output: (B, (S / p)^2), int64.
        """
        patches = normalised_patches(images, self.patch_pixels)  # (B, N, P)
        flat = patches.flatten(0, 1)
        return nearest(flat, self.centres.float()).reshape(patches.shape[:2])


def normalised_patches(images: Tensor, patch_size: int) -> Tensor:
    """Cut images into patches and normalise each.

    Sums are of whole numbers, and so the same in any order and on any device; patches of one
    colour are zeros to the bit, whichever colour it is.

    Shape:
        - images: (B, 3, S, S), uint8. Output: (B, (S / p)^2, 3 p^2), float32.
    """
    patches = patchify(images.to(torch.int32), patch_size)
    count = patches.shape[-1]
    total, squares = (x.sum(-1, keepdim=True) for x in (patches, patches.square()))  # int64
    # n sum(p^2) - sum(p)^2 = n (n - 1) var(p), which is exact in whole numbers
    variance = (count * squares - total.square()).double() / (count * (count - 1))
    deviation = (variance + 1e-6 * 255**2).sqrt()  # pixels are 255 times those in [0, 1]
    return ((patches - total.double() / count) / deviation).float()


def nearest(patches: Tensor, centres: Tensor) -> Tensor:
    """Return the index of the nearest centre of each patch, the lowest of several.

    Shape:
        - patches: (n, P), float32. centres: (K, P), float32. Output: (n,), int64.
    """
    half_norms = centres.square().sum(1) / 2  # (K,)
    chunk = max(1, _CHUNK // len(centres))
    with full_precision(patches.device), float32_products("fp32"):
        return torch.cat(
            [(part @ centres.T - half_norms).argmax(1) for part in patches.split(chunk)]
        )
