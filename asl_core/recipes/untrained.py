"""The floor of every table: an encoder as it is before the first step."""

from dataclasses import dataclass, field
from typing import Literal

from asl_core.recipes.models import MODELS, Vit


@dataclass(frozen=True, kw_only=True)
class UntrainedRecipe:
    """Random weights: nothing is trained, all transfer runs."""

    method: Literal["untrained"] = "untrained"
    dataset: str
    """Name of an entry under `datasets`: the part of a table that it belongs to. Not read."""
    model: Vit = field(default_factory=lambda: MODELS["vit-b"])
    """Its size; the decoder's fields mean nothing here."""
    initialisation: Literal["mae", "dino"] = "mae"
    """Whose weights these are before the first step, for the same seed.

    mae: Xavier-uniform, fixed sin-cos positions; so begin `mae`, `asl`, `ccmim`, `cmae`, `sim`.
    dino: normal with deviation .02, positions too; so begin `dino`, `ibot`, `supervised`.
    """
    seed: int = 0
