"""The recipes of all methods; the one place where their names become classes."""

from asl_core.recipes.asl import AslRecipe
from asl_core.recipes.ccmim import CcMimRecipe
from asl_core.recipes.cmae import CmaeRecipe
from asl_core.recipes.mae import MaeRecipe
from asl_core.recipes.pretraining import MaskedPretraining

RECIPES: dict[str, type[MaskedPretraining]] = {
    "mae": MaeRecipe,
    "asl": AslRecipe,
    "ccmim": CcMimRecipe,
    "cmae": CmaeRecipe,
}
