"""CMAE (Huang et al., 2022): MAE, and a student that finds its image among a teacher's.

Defaults are those of the released configuration (ViT-B, 800 and 1600 epochs), which masks blocks
of patches where the text masks single ones.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from asl_core.recipes.optimisation import require_at_least, require_positive
from asl_core.recipes.pretraining import MaskedPretraining
from asl_core.recipes.views import Colour, View, ViewPlan

TARGET_COLOUR = Colour(jitter=(0.4, 0.4, 0.4, 0.1), grey=0.2, blur=0.5)
"""Of the teacher's view; the student's keeps its colours, as its pixels are reconstructed."""


@dataclass(frozen=True, kw_only=True)
class CmaeRecipe(MaskedPretraining):
    """CMAE; optimised as MAE is, but for what weight decay reaches."""

    couples_images: ClassVar[bool] = True

    method: Literal["cmae"] = "cmae"
    mask_ratio: float = 0.65
    mask: Literal["blocks", "random"] = "blocks"
    """Blocks of 2 x 2 patches; random, with a mask_ratio of 0.75, is what the text says."""
    temperature: float = 0.07
    contrast_weight: float = 1.0
    """Of the contrastive loss beside the pixel loss."""
    teacher_momentum: float = 0.996
    """Constant: the released schedule begins and ends there."""
    feature_decoder_depth: int = 2
    projector_hidden: int = 1536
    projector_dim: int = 256
    crop_size: int | None = None
    """Side of the crop of which both views are windows; absent: 256/224 of the image's."""
    max_shift: int | None = None
    """Largest shift of the teacher's window; absent: one pixel less than there is room for."""

    def __post_init__(self) -> None:
        if self.mask == "blocks" and self.model.grid_size % 2:
            raise ValueError(
                f"mask blocks needs an even number of patches a side, not {self.model.grid_size}; "
                "use mask random or another image_size"
            )
        super().__post_init__()
        require_positive(self, "temperature")
        require_at_least(self, 0, "contrast_weight")
        require_at_least(self, 1, "feature_decoder_depth", "projector_hidden", "projector_dim")
        if not 0 <= self.teacher_momentum <= 1:
            raise ValueError(f"teacher_momentum must be in [0, 1], got {self.teacher_momentum}")

    @property
    def num_visible(self) -> int:
        """Patches that the encoder sees: whole blocks of four."""
        patches = self.model.num_patches
        if self.mask == "random":
            return super().num_visible
        return 4 * int(patches // 4 * (1 - self.mask_ratio))

    def view_plan(self) -> ViewPlan:
        """Return the student's window of the crop, and the teacher's, shifted and coloured."""
        size, scale = self.model.image_size, (self.crop_scale_min, 1.0)
        side = round(size * 256 / 224) if self.crop_size is None else self.crop_size
        shift = max(side - size - 1, 0) if self.max_shift is None else self.max_shift
        return ViewPlan(
            views=(
                View(size=size, scale=scale, flip=self.flip, crop_size=side),
                View(size=size, box="first", crop_size=side, max_shift=shift, colour=TARGET_COLOUR),
            )
        )
