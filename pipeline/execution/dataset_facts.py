"""What the manifest of a packed dataset says of it. Reads only."""

import json
from collections.abc import Mapping
from pathlib import Path

from asl_core.data.manifest import read_manifest
from asl_core.errors import InputError
from asl_core.recipes.analysis import TokenAnalysis
from pipeline.stages.table import DATASETS, Stage


def dataset_digest(folder: Path) -> str:
    """Return the digest of a prepared dataset's training split, `unknown` without a manifest."""
    try:
        digests = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["digests"]
        return str(digests["train"])
    except (OSError, ValueError, KeyError, TypeError):
        return "unknown"


def count_test_images(stage: Stage, recipe: object, inputs: Mapping[str, Path]) -> int | None:
    """Return how many images a run is measured on; None where its data do not say."""
    if stage in DATASETS:  # measured on no test images
        return None
    try:
        manifest = read_manifest(inputs["dataset"])
    except (KeyError, InputError):  # an encoder that is not trained here reads none of our data
        return None
    counted = manifest.annotated if stage.tested_on == "annotated" else manifest.counts
    images = counted.get("test")
    if images is not None and isinstance(recipe, TokenAnalysis):
        return min(images, recipe.images)
    return images
