"""Pre-training methods, one file each; the one place where names become classes.

A method is imported when it is asked for: an edit of one reaches no other.
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from asl_core.modules.encoder import Encoder
from asl_core.protocol import Method
from asl_core.recipes.imported import ImportedRecipe
from asl_core.recipes.normalisation import Rgb
from asl_core.recipes.pretraining import Pretraining
from asl_core.recipes.untrained import UntrainedRecipe

DYNAMIC_IMPORTS: dict[str, str] = {
    "mae": "asl_core.methods.mae:MaskedAutoencoder",
    "asl": "asl_core.methods.asl:ArbitrarySelfSupervised",
    "ccmim": "asl_core.methods.ccmim:ContextContrastiveAutoencoder",
    "cmae": "asl_core.methods.cmae:ContrastiveMaskedAutoencoder",
    "rmae": "asl_core.methods.rmae:RegionMaskedAutoencoder",
    "sim": "asl_core.methods.sim:SiameseImageModel",
    "beit": "asl_core.methods.beit:MaskedCodeModel",
    "cae": "asl_core.methods.cae:ContextAutoencoder",
    "splitmask": "asl_core.methods.splitmask:SplitInpainter",
    "dino": "asl_core.methods.dino:SelfDistillation",
    "ibot": "asl_core.methods.ibot:OnlineTokenizer",
    "mocov3": "asl_core.methods.mocov3:MomentumContrast",
    "supervised": "asl_core.methods.supervised:SupervisedEncoder",
    "imported": "asl_core.methods.imported:adopt_encoder",
    "untrained": "asl_core.methods.untrained:random_encoder",
}
"""Module and name by the value of a recipe's `method`. A literal: the dependencies of a stage are
read from it without running it."""


class MethodClass(Protocol):
    """What every class of the table is made from: its own recipe, and statistics of the images.

    And, where the recipe wants them, the number of classes or the tokenizer of the dataset.
    """

    def __call__(self, recipe: Pretraining, mean: Rgb, std: Rgb, **more: Any) -> Method: ...


def method_class(name: str) -> MethodClass:
    """Import a method that trains.

    Raises:
        KeyError: No method has this name.
    """
    return _load(name)


def encoder_adopter() -> Callable[[Path, ImportedRecipe, Path], Encoder]:
    """Import what takes an encoder over that is not trained here; see `adopt_encoder`."""
    return _load("imported")


def encoder_drawer() -> Callable[[UntrainedRecipe], Encoder]:
    """Import what draws the weights of an encoder that nobody trains; see `random_encoder`."""
    return _load("untrained")


def _load(name: str) -> Any:
    module, _, attribute = DYNAMIC_IMPORTS[name].partition(":")
    return getattr(import_module(module), attribute)
