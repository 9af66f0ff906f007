"""Pictures of what a decoder predicts."""

import torch
from torch import Tensor

from asl_core.modules.patches import patch_statistics, patchify, unpatchify
from asl_core.protocol import Mask


def reconstruction_pictures(
    images: Tensor, preds: dict[str, Tensor], mask: Mask, patch_size: int, norm_pix: bool
) -> dict[str, Tensor]:
    """Return the input, the masked input, and each prediction with the visible patches pasted in.

    Predictions of normalised patches are mapped back with the true statistics of each patch, as
    MAE's own visualisation does: what is shown is structure, not a guess of the colour.

    Args:
        images: Normalised by the dataset's statistics.
        preds: Predictions of the removed patches, by name.
        mask: Which patches were removed.
        patch_size: Side of a patch in pixels.
        norm_pix: Whether predictions are of normalised patches.

    Shape:
        - images: (B, 3, H, W). preds: (B, R, P) each. Outputs: (B, 3, H, W), in the units of
          `images`.
    """
    patches = patchify(images, patch_size)  # (B, N, P)
    places = mask.ids_removed.unsqueeze(-1).expand(-1, -1, patches.shape[-1])  # (B, R, P)
    mean, deviation = patch_statistics(torch.gather(patches, 1, places))
    masked = patches.scatter(1, places, 0.0)
    pictures = {"input": images, "masked": unpatchify(masked, patch_size)}
    for name, pred in preds.items():
        pixels = pred.float() * deviation + mean if norm_pix else pred.float()
        pictures[name] = unpatchify(masked.scatter(1, places, pixels), patch_size)
    return pictures
