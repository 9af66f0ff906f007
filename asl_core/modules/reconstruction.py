"""Pictures of what a decoder predicts."""

from torch import Tensor

from asl_core.modules.patches import patch_statistics, patchify, unpatchify


def reconstruction_pictures(
    images: Tensor, preds: dict[str, Tensor], mask: Tensor, patch_size: int, norm_pix: bool
) -> dict[str, Tensor]:
    """Return the input, the masked input, and each prediction with the visible patches pasted in.

    Predictions of normalised patches are mapped back with the true statistics of each patch, as
    MAE's own visualisation does: what is shown is structure, not a guess of the colour.

    Shape:
        - images: (B, 3, H, W). preds: (B, N, P) each. mask: (B, N). Outputs: (B, 3, H, W), in the
          units of `images`.
    """
    patches = patchify(images, patch_size)  # (B, N, P)
    removed = mask.unsqueeze(-1)
    pictures = {"input": images, "masked": unpatchify(patches * ~removed, patch_size)}
    mean, deviation = patch_statistics(patches)
    for name, pred in preds.items():
        pixels = pred.float() * deviation + mean if norm_pix else pred.float()
        pictures[name] = unpatchify(pixels * removed + patches * ~removed, patch_size)
    return pictures
