"""DINO (Caron et al., 2021): self-distillation without labels."""

from dataclasses import dataclass
from typing import Literal

from asl_core.recipes.distillation import DistillationPretraining
from asl_core.recipes.views import ViewPlan


@dataclass(frozen=True, kw_only=True)
class DinoRecipe(DistillationPretraining):
    """DINO as its launch script trains it."""

    method: Literal["dino"] = "dino"

    def view_plan(self) -> ViewPlan:
        """Return two global crops and the local ones."""
        return ViewPlan(views=self.views())
