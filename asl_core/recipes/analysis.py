"""The analysis of an encoder's tokens, and the pictures of what it makes of images."""

from dataclasses import dataclass
from typing import Literal

from asl_core.recipes.optimisation import require_at_least


@dataclass(frozen=True, kw_only=True)
class TokenAnalysis:
    """Token similarity, Figure 1, by the formula of `analysis/similarity.py`, and Eq. 5-8.

    The contrastive view is measured on the test images that the pre-training kept predictions of
    (`held_out_images` of its recipe), not on `dataset`.
    """

    dataset: str
    images: int = 5000
    """How many images of the evaluation split, evenly spread over it: of every class alike where
    they come class by class."""
    seed: int = 0
    """Of the pairs of positions that CKA compares."""
    contrast_batches: tuple[int, ...] = (8, 16, 32, 64)
    """Images whose removed patches are the candidates of Eq. 8; the largest is the default."""
    contrast_temperatures: tuple[float, ...] = (0.25, 1, 4, 16, 64, 256, 1024)
    """Temperatures of Eq. 8, in units of twice the mean squared error per value. The number of
    values of a patch, 768 at patch 16, is the unit if the norm of Eq. 8 is a mean over them."""
    pictured: int = 8
    """Test images that pictures show, evenly spread over the split: the same for every encoder."""
    compared: int = 1000
    """Test images among which neighbours are sought and that UMAP lays out; drawn, always the same
    ones, where there are more. Those that are pictured are among them."""
    pooling: Literal["mean", "cls"] = "mean"
    """How an image becomes one vector for both: the mean of its patches, then a norm without
    parameters; or [cls] after the final norm, on which not every method has a loss."""
    umap: bool = True
    """Whether UMAP is drawn; it takes 2 s, and the first time in an environment 20 to 25 more."""
    foreground: bool = False
    """Whether the colours of patches are those of the foreground alone, as DINOv2 shows objects:
    the patches on the rarer side of the first component."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "images", "pictured", "compared")
        for name in ("contrast_batches", "contrast_temperatures"):
            values = getattr(self, name)
            if not values or min(values) <= 0:
                raise ValueError(f"{name} needs at least one value, all positive, got {values}")
