"""BEiT (Bao et al., 2021): codes of hidden patches from all the others.

Defaults are those of the released command for ImageNet-1K. Its normalisation is ImageNet's, which
is a property of the dataset here.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from asl_core.recipes.masked_codes import BlockCodePretraining
from asl_core.recipes.models import EncoderParts
from asl_core.recipes.views import ViewPlan


@dataclass(frozen=True, kw_only=True)
class BeitRecipe(BlockCodePretraining):
    """BEiT."""

    couples_images: ClassVar[bool] = True
    """The loss is a mean over the hidden patches of all images, of which some have fewer."""

    method: Literal["beit"] = "beit"
    mask_ratio: float = 0.383
    """Share of patches hidden at most, 75 of 196: rectangles are added until it is reached or none
    fits."""

    @property
    def encoder_parts(self) -> EncoderParts:
        """Factors of branches, keys without a bias, a table of relative positions."""
        return EncoderParts(layer_scale=self.layer_scale, key_bias=False, relative_positions=True)

    def view_plan(self) -> ViewPlan:
        """Return one crop, masked, for the encoder, and the same for the tokenizer."""
        return ViewPlan(views=self.views(self.blocks(exact=False)))
