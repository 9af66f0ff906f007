"""Images as sequences of patches, and MAE's per-patch normalised target."""

import torch
from torch import Tensor

from asl_core.modules.masking import gather_tokens
from asl_core.precision import at_least_float32


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Cut images into patches; inside a patch the order is row, column, channel.

    Shape:
        - images: (B, C, H, W). Output: (B, N, p * p * C).
    """
    batch, channels, height, width = images.shape
    rows, columns = height // patch_size, width // patch_size
    x = images.reshape(batch, channels, rows, patch_size, columns, patch_size)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, patch_size**2 * channels)


def unpatchify(patches: Tensor, patch_size: int, channels: int = 3) -> Tensor:
    """Undo `patchify` for square images.

    Shape:
        - patches: (B, N, p * p * C). Output: (B, C, H, W), H = W.
    """
    batch, num_patches, _ = patches.shape
    side = round(num_patches**0.5)
    x = patches.reshape(batch, side, side, patch_size, patch_size, channels)
    side_pixels = side * patch_size
    return x.permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, side_pixels, side_pixels)


def patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Return each patch's mean and standard deviation, sqrt(var + 1e-6), var unbiased as in MAE.

    Shape:
        - patches: (B, N, P). Outputs: (B, N, 1).
    """
    mean = patches.mean(dim=-1, keepdim=True)
    variance = patches.var(dim=-1, keepdim=True)
    return mean, torch.sqrt(variance + 1e-6)


def pixel_target(images: Tensor, patch_size: int, norm_pix: bool, ids: Tensor) -> Tensor:
    """Return what the decoder predicts: patches, each normalised by its own statistics.

    Shape:
        - images: (B, C, H, W), normalised by the dataset's statistics. ids: (B, R), which patches.
        - Output: (B, R, P), at least float32.
    """
    patches = gather_tokens(patchify(at_least_float32(images), patch_size), ids)
    if not norm_pix:
        return patches
    mean, deviation = patch_statistics(patches)
    return (patches - mean) / deviation
