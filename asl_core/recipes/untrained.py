"""The floor of every table: an encoder as it is before the first step."""

from dataclasses import dataclass, field
from typing import Literal

from asl_core.recipes.models import MODELS, PLAIN, EncoderParts, Vit


@dataclass(frozen=True, kw_only=True)
class UntrainedRecipe:
    """Random weights: nothing is trained, all transfer runs."""

    method: Literal["untrained"] = "untrained"
    dataset: str
    """Name of an entry under `datasets`: the part of a table that it belongs to. Not read."""
    model: Vit = field(default_factory=lambda: MODELS["vit-b"])
    """Its size; the decoder's fields mean nothing here."""
    initialisation: Literal["mae", "dino", "mocov3", "beit", "cae", "splitmask"] = "mae"
    """Whose weights these are before the first step, for the same seed.

    mae: Xavier-uniform, fixed sin-cos positions; so begin `mae`, `asl`, `ccmim`, `cmae`, `sim`.
    dino: normal with deviation .02, positions too; so begin `dino`, `ibot`, `supervised`.
    mocov3: as mae, but each of queries, keys and values Xavier-uniform, and positions row first.
    beit: normal with deviation .02 cut at one, smaller in deeper blocks; with BEiT's parts: factors
    of .1, keys without a bias, relative positions of zero.
    cae: Xavier-uniform, patches and [cls] as beit, positions row first; with factors of .1 and keys
    without a bias.
    splitmask: as beit, but fixed sin-cos positions instead of relative ones.
    """
    seed: int = 0

    @property
    def encoder_parts(self) -> EncoderParts:
        """What the method's encoder has otherwise than a plain ViT, by its published recipe."""
        return _PARTS.get(self.initialisation, PLAIN)


_PARTS = {
    "beit": EncoderParts(layer_scale=0.1, key_bias=False, relative_positions=True),
    "cae": EncoderParts(layer_scale=0.1, key_bias=False),
    "splitmask": EncoderParts(layer_scale=0.1, key_bias=False),
}
