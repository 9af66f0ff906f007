"""An imported encoder in a method's place: verified and taken over as it is, not trained."""

import hashlib
import shutil
from pathlib import Path

from asl_core.errors import InputError
from asl_core.modules.encoder import ARCHITECTURE_FILE, WEIGHTS_FILE, Encoder, load_encoder
from asl_core.recipes.imported import ORIGIN_FILE, ImportedRecipe, encoder_differences


def adopt_encoder(folder: Path, recipe: ImportedRecipe, out: Path) -> Encoder:
    """Copy an imported encoder into `out`, where a trained one would be.

    Raises:
        InputError: It is missing or damaged, or it is not the one that the recipe names.
    """
    encoder = load_encoder(folder)
    weights = folder / WEIGHTS_FILE
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != recipe.sha256:
        raise InputError(
            f"{weights} has sha256 {digest}, params.yaml says {recipe.sha256}: another encoder was "
            "imported under this name; put its sha256 into params.yaml or import the old file again"
        )
    differences = encoder_differences(encoder.vit, recipe.model)
    if differences:
        found = ", ".join(f"{name} {value:g}" for name, value in differences.items())
        raise InputError(
            f"{folder / ARCHITECTURE_FILE} has {found}, `model` in params.yaml has another; "
            "paste the lines that asl-pipe import-encoder printed"
        )
    for name in (WEIGHTS_FILE, ARCHITECTURE_FILE, ORIGIN_FILE):
        if (folder / name).exists():
            shutil.copyfile(folder / name, out / name)
    return encoder
