"""ccMIM (Zhang et al., 2023): MAE, patches hidden by attention, two halves of an image compared.

Defaults are those of the released code, which are not all the text's.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from asl_core.recipes.pretraining import MaskedPretraining


@dataclass(frozen=True, kw_only=True)
class CcMimRecipe(MaskedPretraining):
    """ccMIM; optimised as MAE is."""

    couples_images: ClassVar[bool] = True

    method: Literal["ccmim"] = "ccmim"
    precision: Literal["bf16", "fp32"] = "fp32"
    """The released training switches autocast off."""
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
        if self.temperature <= 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")
        if self.contrast_weight < 0:
            raise ValueError(f"contrast_weight must be at least 0, got {self.contrast_weight}")
        if self.projector_dim < 1 or (self.projector_hidden or 1) < 1:
            raise ValueError("projector_dim and projector_hidden must be at least 1")
        if self.mask == "random" and self.attention != "from_cls":
            raise ValueError("attention has no effect with mask random; remove it")
