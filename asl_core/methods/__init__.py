"""Pre-training methods, one file each; the one place where names become classes."""

from asl_core.methods.asl import ArbitrarySelfSupervised
from asl_core.methods.ccmim import ContextContrastiveAutoencoder
from asl_core.methods.cmae import ContrastiveMaskedAutoencoder
from asl_core.methods.dino import SelfDistillation
from asl_core.methods.ibot import OnlineTokenizer
from asl_core.methods.mae import MaskedAutoencoder
from asl_core.methods.sim import SiameseImageModel
from asl_core.methods.supervised import SupervisedEncoder

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
