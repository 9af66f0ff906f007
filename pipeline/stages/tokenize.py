"""Give a dataset a tokenizer; writes under the stage's output folders only."""

import hashlib
from pathlib import Path

from asl_core.data.shards import PackedDataset
from asl_core.data.sharing import shared_images
from asl_core.errors import InputError
from asl_core.exchange.checkpoints import read_checkpoint
from asl_core.recipes.tokenizers import DalleTokenizer, KMeansTokenizer
from asl_core.tokenizers.dalle import DalleEncoder, from_published
from asl_core.tokenizers.fitting import fit_clusters
from asl_core.tokenizers.measuring import measure_codes
from asl_core.tokenizers.store import save_tokenizer
from pipeline.stages.request import StageRequest


def run(request: StageRequest[KMeansTokenizer | DalleTokenizer]) -> dict[str, float]:
    """Make a dataset of the same images, with a tokenizer, and measure how it uses its codes."""
    recipe, source = request.recipe, request.inputs["dataset"]
    dataset = PackedDataset(source, "train")
    tokenizer = (
        read_encoder(recipe, request.inputs["data_root"])
        if isinstance(recipe, DalleTokenizer)
        else fit_clusters(recipe, dataset, request.resources.num_workers)
    )
    folder = request.outputs["dataset"]
    with shared_images(source, folder, request.key, recipe.notes):
        save_tokenizer(tokenizer, folder)
    return measure_codes(tokenizer, recipe, dataset, request.resources)


def read_encoder(recipe: DalleTokenizer, data_root: Path) -> DalleEncoder:
    """Return DALL-E's encoder from the file that a recipe names.

    Raises:
        InputError: It is missing, another file, or no state dict of that encoder.
    """
    path = recipe.file(data_root)
    if not path.is_file():
        raise InputError(f"{path} does not exist; correct `weights`, or set ASL_DATA")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if recipe.sha256 not in ("", digest):
        raise InputError(
            f"{path} has sha256 {digest}, params.yaml says {recipe.sha256}; put the right file "
            "there, or this sha256 into params.yaml"
        )
    content = read_checkpoint(path).content
    return from_published(content, path, width=recipe.width, num_codes=recipe.num_codes)
