"""The recipes of all methods; the one place where their names become classes."""

from asl_core.recipes.asl import AslRecipe
from asl_core.recipes.beit import BeitRecipe
from asl_core.recipes.cae import CaeRecipe
from asl_core.recipes.ccmim import CcMimRecipe
from asl_core.recipes.cmae import CmaeRecipe
from asl_core.recipes.dino import DinoRecipe
from asl_core.recipes.ibot import IbotRecipe
from asl_core.recipes.imported import ImportedRecipe
from asl_core.recipes.mae import MaeRecipe
from asl_core.recipes.mocov3 import MocoV3Recipe
from asl_core.recipes.pretraining import Pretraining
from asl_core.recipes.rmae import RmaeRecipe
from asl_core.recipes.sim import SimRecipe
from asl_core.recipes.splitmask import SplitMaskRecipe
from asl_core.recipes.supervised import SupervisedRecipe
from asl_core.recipes.untrained import UntrainedRecipe

RECIPES: dict[str, type[Pretraining]] = {
    "mae": MaeRecipe,
    "asl": AslRecipe,
    "ccmim": CcMimRecipe,
    "cmae": CmaeRecipe,
    "rmae": RmaeRecipe,
    "sim": SimRecipe,
    "beit": BeitRecipe,
    "cae": CaeRecipe,
    "splitmask": SplitMaskRecipe,
    "dino": DinoRecipe,
    "ibot": IbotRecipe,
    "mocov3": MocoV3Recipe,
    "supervised": SupervisedRecipe,
}

NOT_TRAINED: dict[str, type[ImportedRecipe] | type[UntrainedRecipe]] = {
    "imported": ImportedRecipe,
    "untrained": UntrainedRecipe,
}
"""Encoders that stand in a method's place as they are."""
