"""R-MAE (Nguyen et al., 2023): MAE, and the maps of regions of the image.

Its optimisation is MAE's: AdamW with betas (.9, .95), weight decay .05, 2.4e-3 at batch 4096. The
original counts updates: on ImageNet 249,600, of warm-up 12,480, which are 800 and 40 epochs. Its
file for 4000 epochs of COCO sets 144,000 updates, which are 4,986 epochs at batch 4096; the ~115k
that the ASL paper gives are 4,000.
"""

from dataclasses import dataclass, replace
from typing import Literal

from asl_core.recipes.models import Vit
from asl_core.recipes.optimisation import require_at_least, require_positive
from asl_core.recipes.pretraining import MaskedPretraining
from asl_core.recipes.views import ViewPlan


@dataclass(frozen=True, kw_only=True)
class RmaeRecipe(MaskedPretraining):
    """R-MAE. Its dataset has `regions`."""

    method: Literal["rmae"] = "rmae"
    num_regions: int = 8
    """Regions drawn from each image: those of the published model. Not the 0 of `base_rmae.yaml`,
    which switches regions off."""
    region_weight: float = 1.0
    """Of the regions' loss beside the pixels' (`region_loss_weight`)."""
    region_dim: int = 128
    """Width of the regions' encoder and decoder and of the pixel decoder (`region_enc_dim`,
    `region_dec_dim`)."""
    region_num_heads: int = 8
    """Of all three (`region_enc_num_heads`, `region_dec_num_heads`)."""
    region_encoder_depth: int = 1
    """Blocks that a region's visible patches go through (`region_enc_depth`)."""
    pixel_decoder_depth: int = 8
    """Blocks of the decoder that gives the image's features to regions (`region_cross_layer`)."""

    def __post_init__(self) -> None:
        require_at_least(
            self, 1, "num_regions", "region_num_heads", "region_encoder_depth",
            "pixel_decoder_depth",
        )  # fmt: skip
        require_positive(self, "region_weight", "region_dim")
        if self.region_dim % 4 or self.region_dim % self.region_num_heads:
            raise ValueError(
                f"region_dim {self.region_dim} must be a multiple of 4, for sin-cos positions, and "
                f"of region_num_heads {self.region_num_heads}"
            )
        super().__post_init__()

    @property
    def pixel_decoder(self) -> Vit:
        """Sizes of the decoder that gives the image's features to regions."""
        return replace(
            self.model,
            decoder_embed_dim=self.region_dim,
            decoder_depth=self.pixel_decoder_depth,
            decoder_num_heads=self.region_num_heads,
        )

    def view_plan(self) -> ViewPlan:
        """Return MAE's crop, and regions of it."""
        return replace(super().view_plan(), regions=self.num_regions)
