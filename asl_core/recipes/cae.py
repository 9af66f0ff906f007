"""CAE (Chen et al., 2022): regress what the encoder would make of hidden patches, then their codes.

Defaults are those of the released script for a ViT-B and 800 epochs (`scripts/cae_base_800e.sh`),
and of `tools/run_pretraining.py` where it is silent. The two released repositories differ in their
teacher: in the first (lxtGH) it is a copy, one step old, which is reproduced here; in the second
(Atten4Vis) an assignment makes it share the encoder's memory, so that it is the encoder itself.
"""

from dataclasses import dataclass
from typing import Literal

from asl_core.recipes.masked_codes import BlockCodePretraining
from asl_core.recipes.optimisation import require_at_least
from asl_core.recipes.views import ViewPlan


@dataclass(frozen=True, kw_only=True)
class CaeRecipe(BlockCodePretraining):
    """CAE; regressor and decoder are as wide as the encoder, as in the script."""

    method: Literal["cae"] = "cae"
    warmup_epochs: float = 20
    """The script's; 10 for 300 epochs and 40 for 1600 (README)."""
    mask_ratio: float = 0.5
    """Share of patches hidden: 98 of 196, by rectangles until it is reached."""
    jitter: float = 0.0
    """The script's `color_jitter`: colours stay as they are."""
    regressor_depth: int = 4
    decoder_depth: int = 4
    align_weight: float = 2.0
    """Of the distance between regressed and encoded representations, beside the codes."""
    teacher_momentum: float = 0.0
    """The script's `base_momentum`: the teacher is a copy of the encoder, one step old."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "regressor_depth", "decoder_depth")
        require_at_least(self, 0, "align_weight")
        if not 0 <= self.teacher_momentum <= 1:
            raise ValueError(f"teacher_momentum must be in [0, 1], got {self.teacher_momentum}")
        super().__post_init__()

    def view_plan(self) -> ViewPlan:
        """Return one crop, masked, for the encoder, and the same for the tokenizer."""
        # the original tries rectangles without end; ten tries, a hundred times, find one too
        return ViewPlan(views=self.views(self.blocks(exact=True, patience=100)))
