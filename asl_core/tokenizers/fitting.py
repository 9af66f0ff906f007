"""Fit the centres of k-means to patches of a dataset's training images.

Sculley's mini-batch k-means as scikit-learn has it. It begins with patches of the first batch, no
two of them equal, so that every centre has one patch at least.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor
from tqdm import tqdm

from asl_core.data.shards import PackedDataset
from asl_core.errors import InputError
from asl_core.randomness import numpy_generator
from asl_core.recipes.tokenizers import KMeansTokenizer
from asl_core.tokenizers.kmeans import PatchClusters, normalised_patches
from asl_core.tokenizers.views import TokenViews

_PATCHES_PER_CODE = 3
"""Of a batch; scikit-learn's choice for the patches that the centres are begun with."""


def fit_clusters(
    recipe: KMeansTokenizer, dataset: PackedDataset, num_workers: int = 0
) -> PatchClusters:
    """Fit a tokenizer; a function of the recipe and the images, whatever the number of threads.

    Args:
        recipe: Number of codes, sizes, images, seed.
        dataset: The training split.
        num_workers: Loader processes.

    Raises:
        InputError: The first batch has fewer different patches than there are to be codes.
    """
    batch_size = -(-_PATCHES_PER_CODE * recipe.num_codes // recipe.patches)
    views = TokenViews(
        dataset,
        recipe,
        "fit of a tokenizer",
        batch_size=batch_size,
        epochs=recipe.epochs,
        num_workers=num_workers,
    )
    clusters: Any = None  # scikit-learn's types are partial
    name = dataset.manifest.name
    with tqdm(total=len(views), desc=f"k-means of {name}", unit="batch", disable=None) as bar:
        for images in views:
            patches = _rows(images, recipe.patch_size)  # (n, P)
            if clusters is None:
                clusters = _begun(_first_centres(patches, recipe, name))
            clusters.partial_fit(patches)
            bar.update()
    assert clusters is not None  # a loader has one batch at least
    centres = torch.from_numpy(clusters.cluster_centers_.astype(np.float32))
    return PatchClusters(centres, recipe.patch_size)


def _rows(images: Tensor, patch_size: int) -> NDArray[np.float32]:
    return normalised_patches(images, patch_size).flatten(0, 1).numpy()


def _first_centres(
    patches: NDArray[np.float32], recipe: KMeansTokenizer, name: str
) -> NDArray[np.float32]:
    """Draw patches that differ, (K, P)."""
    different = np.unique(patches, axis=0)
    if len(different) < recipe.num_codes:
        raise InputError(
            f"num_codes {recipe.num_codes} exceeds the {len(different)} different patches of the "
            f"first batch of dataset {name}; lower it, or raise images where the dataset has more"
        )
    generator = numpy_generator(recipe.seed, "first centres of a tokenizer")
    return different[generator.choice(len(different), recipe.num_codes, replace=False)]


def _begun(centres: NDArray[np.float32]) -> Any:
    kind: Any = MiniBatchKMeans
    return kind(
        len(centres),
        init=centres,
        n_init=1,
        # a centre is replaced where it has less than a share of the largest cluster's patches,
        # which is that of patches of one colour: most centres would be, again and again
        reassignment_ratio=0.0,
        random_state=0,  # nothing else is drawn
    )
