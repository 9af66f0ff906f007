"""An imported encoder in a method's place: verified and taken over as it is, not trained."""

import hashlib
import json
import shutil
from pathlib import Path

from asl_core.errors import InputError
from asl_core.modules.encoder import ARCHITECTURE_FILE, WEIGHTS_FILE, Encoder, load_encoder
from asl_core.recipes.imported import (
    ORIGIN_FILE,
    ImportedRecipe,
    encoder_differences,
    shown_differences,
)


def adopt_encoder(folder: Path, recipe: ImportedRecipe, out: Path) -> Encoder:
    """Copy an imported encoder into `out`, where a trained one would be.

    Raises:
        InputError: It is missing or damaged, or it is not the one that the recipe names.
    """
    encoder = load_encoder(folder)
    weights = folder / WEIGHTS_FILE
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if recipe.published is not None:
        _check_published(folder, recipe.published, digest)
    elif digest != recipe.sha256:
        raise InputError(
            f"{weights} has sha256 {digest}, params.yaml says {recipe.sha256}: another encoder was "
            "imported under this name; put its sha256 into params.yaml or import the old file again"
        )
    differences = encoder_differences(encoder.vit, recipe.model)
    if differences:
        found = shown_differences(differences)
        raise InputError(
            f"{folder / ARCHITECTURE_FILE} has {found}, `model` in params.yaml has another; "
            "paste the lines that asl-pipe import-encoder printed"
        )
    for name in (WEIGHTS_FILE, ARCHITECTURE_FILE, ORIGIN_FILE):
        if (folder / name).exists():
            shutil.copyfile(folder / name, out / name)
    return encoder


def _check_published(folder: Path, name: str, digest: str) -> None:
    """Refuse what `asl-pipe import-encoder --published` has not written there."""
    try:
        origin = json.loads((folder / ORIGIN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        origin = {}
    if (origin.get("published"), origin.get("encoder_sha256")) != (name, digest):
        raise InputError(
            f"{folder} does not hold the published weights {name}, or they were changed; run "
            f"`asl-pipe import-encoder --published {name} --force`"
        )
