"""SplitMask (El-Nouby et al., 2021): each half of an image inpaints the other, and they match.

There is no public code, and no text here but summaries of the paper. They say: patches are split
into two disjoint subsets, encoded apart by one encoder without mask tokens; a decoder of about two
layers predicts the codes of each subset from the other, as BEiT's are; the means of the decoder's
outputs, x_a and x_b, are compared by InfoNCE with those of the other images of the batch. All else
is inferred, and says so where it stands.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from asl_core.recipes.masked_codes import MaskedCodePretraining
from asl_core.recipes.optimisation import require_at_least, require_positive
from asl_core.recipes.views import ViewPlan


@dataclass(frozen=True, kw_only=True)
class SplitMaskRecipe(MaskedCodePretraining):
    """SplitMask; that it is optimised, and its images made, as BEiT's is inferred.

    So are the encoder's factors and its keys without a bias. Its positions are MAE's fixed ones:
    a table of relative positions, as BEiT has, would be another matrix for each image's subset.
    """

    couples_images: ClassVar[bool] = True

    method: Literal["splitmask"] = "splitmask"
    epochs: int = 800
    """BEiT's. The 128,000 steps that the ASL paper gives for ADE20K would be 21,000 epochs of the
    25,000 images it counts, at a batch of 4096: inferred from these numbers alone."""
    decoder_depth: int = 2
    """The summaries': "e.g. 2 layers". That it is as wide as the encoder is inferred, and that it
    is MAE's otherwise: a Linear before it, [cls] among its tokens, no factors of branches."""
    temperature: float = 0.2
    """Inferred; MoCo v3 has the same."""
    contrast_weight: float = 1.0
    """Of InfoNCE beside both cross entropies, which are added; inferred."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "decoder_depth")
        require_positive(self, "temperature")
        require_at_least(self, 0, "contrast_weight")
        if self.model.num_patches < 2:
            raise ValueError("splitmask splits an image's patches; it needs 2 of them at least")
        super().__post_init__()

    def view_plan(self) -> ViewPlan:
        """Return one crop for the encoder, and the same for the tokenizer; the halves are drawn."""
        return ViewPlan(views=self.views())
