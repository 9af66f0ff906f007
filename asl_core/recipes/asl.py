"""ASL (Li et al., 2024), Section 3.3: MAE, a second set of features, and their alignment.

The paper leaves several choices open; each is a field here, the default first.
"""

from dataclasses import dataclass
from typing import Literal

from asl_core.recipes.pretraining import MaskedPretraining


@dataclass(frozen=True, kw_only=True)
class AslRecipe(MaskedPretraining):
    """ASL; optimised as MAE is."""

    method: Literal["asl"] = "asl"
    design: Literal["aee", "dle"] = "aee"
    """aee: one Transformer layer after the encoder; dle: dropout in the linear embedding."""
    mae_on: Literal["both_mean", "both_sum", "ori"] = "both_mean"
    """Which branch the pixel loss reads. Without alignment the second branch of Table 7 (b), (d)
    must be trained by something, hence both."""
    sem_weight: float = 1.0
    """Weight of the alignment loss, Eq. 11; 0 switches it off (Table 7 b, d)."""
    sem_type: Literal["l1", "cosine"] = "l1"
    """Distance of Eq. 9; cosine is the comparison of Section 4.6."""
    dle_rate: float = 0.1
    """Dropout rate of dle; SimCSE's value, the paper gives none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.dle_rate < 1:
            raise ValueError(f"dle_rate must be in [0, 1), got {self.dle_rate}")
        if self.sem_weight < 0:
            raise ValueError(f"sem_weight must be at least 0, got {self.sem_weight}")
