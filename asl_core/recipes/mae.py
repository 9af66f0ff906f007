"""MAE (He et al., 2021): Eq. 1-2 of the ASL paper."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from asl_core.recipes.pretraining import MaskedPretraining


@dataclass(frozen=True, kw_only=True)
class MaeRecipe(MaskedPretraining):
    """MAE as its authors train it."""

    may_be_fp16: ClassVar[bool] = True

    method: Literal["mae"] = "mae"
