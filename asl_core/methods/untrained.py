"""A random encoder in a method's place: the one that a method of the same seed begins with."""

from asl_core.modules.beit_weights import initialise_as_beit, initialise_as_cae
from asl_core.modules.encoder import Encoder, initialise_as_dino, initialise_as_moco
from asl_core.randomness import derive_seed, seeded_globals
from asl_core.recipes.untrained import UntrainedRecipe


def random_encoder(recipe: UntrainedRecipe) -> Encoder:
    """Draw the weights: a function of the recipe's size, initialisation and seed alone.

    A method draws its encoder first, so that what it has beside one (decoder, heads) leaves these
    numbers as they are.
    """
    with seeded_globals(derive_seed(recipe.seed, "init")):
        encoder = Encoder(recipe.model, recipe.encoder_parts)
        if recipe.initialisation == "dino":
            initialise_as_dino(encoder)
        elif recipe.initialisation == "mocov3":
            initialise_as_moco(encoder)
        elif recipe.initialisation in ("beit", "splitmask"):
            initialise_as_beit(encoder)
        elif recipe.initialisation == "cae":
            initialise_as_cae(encoder)
    return encoder
