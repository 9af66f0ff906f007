"""The recipes of all methods; the one place where their names become classes."""

from asl_core.recipes.asl import AslRecipe
from asl_core.recipes.ccmim import CcMimRecipe
from asl_core.recipes.cmae import CmaeRecipe
from asl_core.recipes.dino import DinoRecipe
from asl_core.recipes.ibot import IbotRecipe
from asl_core.recipes.imported import ImportedRecipe
from asl_core.recipes.mae import MaeRecipe
from asl_core.recipes.pretraining import Pretraining
from asl_core.recipes.sim import SimRecipe
from asl_core.recipes.supervised import SupervisedRecipe
from asl_core.recipes.untrained import UntrainedRecipe

RECIPES: dict[str, type[Pretraining]] = {
    "mae": MaeRecipe,
    "asl": AslRecipe,
    "ccmim": CcMimRecipe,
    "cmae": CmaeRecipe,
    "sim": SimRecipe,
    "dino": DinoRecipe,
    "ibot": IbotRecipe,
    "supervised": SupervisedRecipe,
}

NOT_TRAINED: dict[str, type[ImportedRecipe] | type[UntrainedRecipe]] = {
    "imported": ImportedRecipe,
    "untrained": UntrainedRecipe,
}
"""Encoders that stand in a method's place as they are."""
