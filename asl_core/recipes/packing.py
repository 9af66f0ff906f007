"""What every source of images has in common: how its images are packed."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from asl_core.recipes.normalisation import NORMALISATIONS, Rgb

Normalisation = Literal["imagenet", "cifar10", "cifar100", "inception"]

Place = tuple[str, tuple[Path, ...]]
"""What a recipe reads, as it writes it, and the files or folders of this machine which that is."""

_WIDEST_BLUR = 20
"""Pixels. Nothing is left of an image by then, and memory grows with it."""


@dataclass(frozen=True, kw_only=True)
class Regions:
    """Segmentations of the training images by the algorithm of Felzenszwalb and Huttenlocher.

    Source: R-MAE, `tools/preprocess`, which calls scikit-image's `felzenszwalb`.
    """

    scales: tuple[int, ...]
    """One map for each; larger ones have larger segments, and none has fewer pixels than its
    scale. R-MAE has 500, 1000 and 1500 for COCO, 1000 for ImageNet."""
    sigma: float = 0.8
    """Deviation of the blur before, in pixels; scikit-image's, which R-MAE leaves as it is."""

    def __post_init__(self) -> None:
        if not self.scales or min(self.scales) < 1:
            raise ValueError(
                f"scales must be one or more numbers of pixels from 1, got {list(self.scales)}"
            )
        if len(set(self.scales)) < len(self.scales):
            raise ValueError(f"scales must differ from each other, got {list(self.scales)}")
        if not 0 <= self.sigma <= _WIDEST_BLUR:
            raise ValueError(f"sigma must be from 0 to {_WIDEST_BLUR} pixels, got {self.sigma}")


@dataclass(frozen=True, kw_only=True)
class Packing:
    """What every source has."""

    normalisation: Normalisation = "imagenet"
    """Which constants of NORMALISATIONS the models read; COCO and ADE20K use ImageNet's."""
    max_rejected_share: float = 0.001
    """Largest share of a split that may be corrupt or unreadable; more is an error."""
    selection: int = 0
    """Training images, always the same ones, that replace the official test split, for choosing
    hyperparameters. 0: the official split is packed, to be used once at the end."""
    note: str = ""
    """What a reader of the results should know of these images; printed under every table."""
    regions: Regions | None = None
    """Segmentations that are packed beside the training images, for methods that want regions;
    absent: none. A third to half a second of one core for an image of COCO's size and a scale."""

    def __post_init__(self) -> None:
        if not 0 <= self.max_rejected_share < 1:
            raise ValueError(f"max_rejected_share must be in [0, 1), got {self.max_rejected_share}")
        if self.selection < 0:
            raise ValueError(f"selection must be at least 0, got {self.selection}")

    def places(self, data_root: Path) -> tuple[Place, ...]:
        """Return what is packed and watched; nothing where images are composed."""
        return ()

    def needed(self, data_root: Path) -> tuple[Path, ...]:
        """Return what must be there on this machine before anything can be packed."""
        return ()

    @property
    def mean(self) -> Rgb:
        """Mean of R, G, B in [0, 1]."""
        return NORMALISATIONS[self.normalisation][0]

    @property
    def std(self) -> Rgb:
        """Standard deviation of R, G, B, for pixels in [0, 1]."""
        return NORMALISATIONS[self.normalisation][1]


def on_disk(path: str, data_root: Path) -> Path:
    """Return where a path of a recipe lies on this machine; `~` and $VARIABLES are expanded."""
    return data_root / os.path.expanduser(os.path.expandvars(path))
