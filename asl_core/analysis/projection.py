"""Images as points of a plane in which those that an encoder finds alike lie together: UMAP."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asl_core.analysis.neighbours import nearest_neighbours

NEIGHBOURS = 15
"""umap-learn's default; the point itself is one of them."""
LEAST = 1 + NEIGHBOURS
"""With fewer images each one is a neighbour of each: such a plane says nothing."""
SEED = 0
APART = 0.08
"""Of the plane's width: the side of an image that is drawn in it."""


def project(vectors: Tensor) -> NDArray[np.float32]:
    """Lay images out in a plane by umap-learn, with its defaults and cosine distances.

    One thread and a fixed seed: the same vectors give the same bits. Neighbours are exact and come
    from `nearest_neighbours`, so that umap need not compile a search of its own (5 s).

    Args:
        vectors: One for each image, (N, D), N at least `LEAST`.

    Returns:
        (N, 2), float32.

    Raises:
        ImportError: umap-learn is not installed.
        RuntimeError: numba finds no folder to keep compiled code in.
    """
    count = len(vectors)
    nearest = nearest_neighbours(vectors, range(count), NEIGHBOURS - 1)
    own = np.arange(count)[:, None]
    places = np.hstack([own, nearest.places.numpy()]).astype(np.int32)  # (N, K)
    distances = np.hstack([np.zeros((count, 1)), 1 - nearest.cosines.numpy()])
    with warnings.catch_warnings(), _threads_of_torch():
        # of TensorFlow, which is not needed, and that the plane takes in no further points
        warnings.simplefilter("ignore")
        umap = _load()
        layout = umap.UMAP(
            n_neighbors=NEIGHBOURS,
            metric="cosine",
            random_state=SEED,
            n_jobs=1,
            precomputed_knn=(places, np.maximum(distances, 0).astype(np.float32)),
        ).fit_transform(torch.nn.functional.normalize(vectors.float(), dim=1).numpy())
    return np.asarray(layout, dtype=np.float32)


@contextmanager
def _threads_of_torch() -> Iterator[None]:
    """Restore the number of torch's threads: numba sets that of OpenMP, which torch rounds by."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def unit_square(plane: NDArray[np.float32]) -> NDArray[np.float32]:
    """Bring points, (N, 2), into the unit square, each axis by itself: neither has a unit."""
    extent = np.ptp(plane, axis=0)
    return (plane - plane.min(axis=0)) / np.where(extent > 0, extent, 1)


def apart(plane: NDArray[np.float32]) -> list[int]:
    """Return the first points that are `APART` from those before: an image at each hides none."""
    places = unit_square(plane)
    found: list[int] = []
    for place, point in enumerate(places):
        if not found or np.abs(places[found] - point).max(axis=1).min() > APART:
            found.append(place)
    return found


def _load() -> Any:
    """Import umap, and keep what it compiles on the disk, beside what it keeps there itself.

    Compiling takes longer than laying out a thousand images; the bits are the same.
    """
    import umap
    from umap import layouts, umap_

    for module, name in (
        (umap_, "smooth_knn_dist"),
        (umap_, "compute_membership_strengths"),
        (layouts, "_nb_optimize_layout_euclidean_single_epoch"),
    ):
        with suppress(AttributeError, RuntimeError):  # of another version; no place to keep it
            getattr(module, name).enable_caching()
    return umap
