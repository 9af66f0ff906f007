"""ccMIM (Zhang et al., 2023): MAE, patches hidden by attention, two halves of an image compared.

Defaults are those of the released code, which are not all the text's.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from asl_core.recipes.optimisation import require_at_least, require_positive
from asl_core.recipes.pretraining import MaskedPretraining


@dataclass(frozen=True, kw_only=True)
class CcMimRecipe(MaskedPretraining):
    """ccMIM; optimised as MAE is."""

    couples_images: ClassVar[bool] = True

    method: Literal["ccmim"] = "ccmim"
    precision: Literal["bf16", "fp32", "tf32"] = "tf32"
    """The released training switches autocast off, and torch multiplied in TF32 then."""
    temperature: float = 0.5
    """Of the contrastive loss; the model's class stores 0.2 and never reads it."""
    contrast_weight: float = 0.1
    """Of the contrastive loss beside the pixel loss."""
    mask: Literal["attention", "random"] = "attention"
    """Which patches are hidden: those that [cls] and they attend to most, or any."""
    attention: Literal["from_cls", "to_cls"] = "from_cls"
    """Whose attention: that of [cls] to the patches, or, as earlier versions of the code have it,
    of the patches to [cls]."""
    projector_hidden: int | None = None
    """Width inside the projector; absent: the encoder's."""
    projector_dim: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "temperature")
        require_at_least(self, 0, "contrast_weight")
        require_at_least(self, 1, "projector_hidden", "projector_dim")
        if self.mask == "random" and self.attention != "from_cls":
            raise ValueError("attention has no effect with mask random; remove it")
