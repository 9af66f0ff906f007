from pathlib import Path

import pytest
import torch

from asl_core.data.prepare import prepare
from asl_core.data.shards import PackedDataset
from asl_core.recipes.datasets import Icons, Regions
from asl_core.recipes.tokenizers import KMeansTokenizer
from asl_core.tokenizers.fitting import fit_clusters
from asl_core.tokenizers.store import save_tokenizer


@pytest.fixture(scope="session")
def icons(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 + 16 images of 16 pixels, with labels, maps of regions, and a tokenizer for 4 pixels."""
    folder = tmp_path_factory.mktemp("data") / "icons"
    recipe = Icons(image_size=16, train=40, test=16, regions=Regions(scales=(8, 16)))
    prepare(recipe, folder, folder, name="icons")
    tokenizer = KMeansTokenizer(
        dataset="icons", num_codes=12, patch_size=4, image_size=16, images=40, epochs=1
    )
    save_tokenizer(fit_clusters(tokenizer, PackedDataset(folder, "train")), folder)
    return folder


@pytest.fixture(scope="session", autouse=True)
def autograd_has_begun() -> None:
    """Let the first backward pass come before torch.compile makes devices known.

    Autograd would start a thread for each of them, and processes that are forked later by other
    tests could not go backward.
    """
    torch.ones((), requires_grad=True).backward()
