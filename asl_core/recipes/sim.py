"""SIM (Tao et al., 2022): Siamese image modeling, the patches of another view predicted.

Defaults are those of the released launch script (ViT-B, 1600 epochs).
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from asl_core.recipes.optimisation import require_at_least, require_share
from asl_core.recipes.pretraining import Pretraining
from asl_core.recipes.views import BYOL_1, BYOL_2, BlockMask, View, ViewPlan


@dataclass(frozen=True, kw_only=True)
class SimRecipe(Pretraining):
    """SIM."""

    couples_images: ClassVar[bool] = True

    method: Literal["sim"] = "sim"
    blr: float = 6.25e-5
    clip_grad: float | None = 1.0
    mask_ratio: float = 0.602
    """Share of the first view's patches removed: 118 of 196."""
    smallest_block: int | None = None
    """Patches of the smallest rectangle of the mask; absent: 16 of 196."""
    crop_scale_min: float = 0.08
    projector_depth: int = 2
    predictor_depth: int = 4
    predictor_embed_dim: int | None = None
    """Width of projector and predictor; absent: the encoder's."""
    predictor_num_heads: int | None = None
    """Absent: those of the model's decoder."""
    negative_weight: float = 0.02
    """Of what drives predictions apart."""
    teacher_momentum: float = 0.995
    """At the beginning; rises to 1 along half a cosine."""
    train_patch_embed: bool = False
    """The released training leaves the patch embedding as it was drawn."""
    colours: bool = True
    """Whether colours of the views are changed, as in BYOL; no for images of 32 pixels."""

    def __post_init__(self) -> None:
        patches = self.model.num_patches
        if not 1 <= self.num_removed < patches:
            raise ValueError(
                f"mask_ratio {self.mask_ratio} removes {self.num_removed} of {patches} patches; at "
                "least one must be removed, and one stay"
            )
        require_share("crop_scale_min", self.crop_scale_min)
        if not 0 <= self.teacher_momentum <= 1:
            raise ValueError(f"teacher_momentum must be in [0, 1], got {self.teacher_momentum}")
        require_at_least(self, 0, "negative_weight")
        require_at_least(
            self, 1, "projector_depth", "predictor_depth", "predictor_embed_dim",
            "predictor_num_heads", "smallest_block",
        )  # fmt: skip
        if self.width % self.heads or self.width % 4:
            raise ValueError(
                f"predictor_embed_dim {self.width} must be a multiple of 4 and of "
                f"predictor_num_heads {self.heads}"
            )
        super().__post_init__()

    @property
    def num_removed(self) -> int:
        """Patches of the first view that are removed."""
        return round(self.mask_ratio * self.model.num_patches)

    @property
    def width(self) -> int:
        """Width of projector and predictor."""
        own = self.predictor_embed_dim
        return self.model.embed_dim if own is None else own

    @property
    def heads(self) -> int:
        """Attention heads of projector and predictor."""
        own = self.predictor_num_heads
        return self.model.decoder_num_heads if own is None else own

    def view_plan(self) -> ViewPlan:
        """Return two crops, the first masked, and where they lie."""
        vit, scale = self.model, (self.crop_scale_min, 1.0)
        ratio = self.num_removed / vit.num_patches
        smallest = self.smallest_block
        if smallest is None:
            smallest = max(1, round(16 * vit.num_patches / 196))
        mask = BlockMask(
            grid_size=vit.grid_size, ratios=((ratio, ratio),), smallest=smallest, exact=True
        )
        first, second = (BYOL_1, BYOL_2) if self.colours else (None, None)
        return ViewPlan(
            views=(
                View(size=vit.image_size, scale=scale, flip=self.flip, colour=first, mask=mask),
                View(size=vit.image_size, scale=scale, flip=self.flip, colour=second),
            ),
            boxes=True,
        )
