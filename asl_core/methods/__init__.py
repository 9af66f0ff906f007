"""Pre-training methods, one file each; the one place where names become classes."""

from typing import Any

from asl_core.methods.asl import ArbitrarySelfSupervised
from asl_core.methods.ccmim import ContextContrastiveAutoencoder
from asl_core.methods.cmae import ContrastiveMaskedAutoencoder
from asl_core.methods.dino import SelfDistillation
from asl_core.methods.ibot import OnlineTokenizer
from asl_core.methods.mae import MaskedAutoencoder
from asl_core.methods.sim import SiameseImageModel
from asl_core.methods.supervised import SupervisedEncoder
from asl_core.recipes.normalisation import Rgb
from asl_core.recipes.pretraining import Pretraining

METHODS = {
    "mae": MaskedAutoencoder,
    "asl": ArbitrarySelfSupervised,
    "ccmim": ContextContrastiveAutoencoder,
    "cmae": ContrastiveMaskedAutoencoder,
    "sim": SiameseImageModel,
    "dino": SelfDistillation,
    "ibot": OnlineTokenizer,
    "supervised": SupervisedEncoder,
}


def make(recipe: Pretraining, mean: Rgb, std: Rgb, num_classes: int | None = None) -> Any:
    """Return a method with new weights.

    Args:
        recipe: Names it.
        mean: Of the images' channels, in [0, 1].
        std: Their standard deviation.
        num_classes: Of the dataset; read by a method that wants labels, and 1000 where absent.
    """
    kind: Any = METHODS[recipe.method]
    if num_classes is None or not recipe.view_plan().labels:
        return kind(recipe, mean, std)
    return kind(recipe, mean, std, num_classes=num_classes)
