"""Patch tokens as colours: their first three principal components, as DINOv2 shows features."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CUT = 0.01
"""Share of the patches at either end that has the darkest and the brightest colour: a single patch
that lies far out would leave the others without contrast."""
_EVEN = 1e-6
"""A skewness below it is rounding."""


@dataclass(frozen=True)
class PatchColours:
    """Colours of the patches of some images.

    Attributes:
        colours: Red, green, blue in [0, 1], (B, N, 3) float32; black where a patch is background.
        explained: Share of the variance that each component has, at most three.
        foreground: Which patches are, (B, N) bool; None where nobody asked.
    """

    colours: Tensor
    explained: tuple[float, ...]
    foreground: Tensor | None = None


def patch_colours(tokens: Tensor, *, foreground: bool = False) -> PatchColours:
    """Give each patch the colour of its place among the patches of all images.

    One PCA over all of them, in float64; the components become red, green and blue, each from its
    1st to its 99th percentile. A component's sign is free: it is taken so that the rarer side is
    bright (a positive third moment), which neither a rotation of the features nor a rerun changes.
    With `foreground` the patches on the rarer side of the mean in the first component are kept,
    and coloured by a PCA of their own.

    Source: Oquab et al., 2024 (DINOv2), Figure 1; which side is foreground is chosen by hand there.

    Args:
        tokens: Patch tokens after the final norm.
        foreground: Whether to leave the background out.

    Shape:
        - tokens: (B, N, D).
    """
    shape = tokens.shape[:2]
    rows = tokens.detach().cpu().double().flatten(0, 1).numpy()  # (B N, D)
    scores, explained = principal_components(rows)
    if not foreground:
        colours = torch.from_numpy(_scale(scores)).float()
        return PatchColours(colours.unflatten(0, shape), explained)
    kept = scores[:, 0] > 0  # (B N,)
    if kept.any():
        scores, explained = principal_components(rows[kept])
    coloured = np.zeros((len(rows), 3))
    coloured[kept] = _scale(scores) if kept.any() else 0
    return PatchColours(
        torch.from_numpy(coloured).float().unflatten(0, shape),
        explained,
        torch.from_numpy(kept).unflatten(0, shape),
    )


def principal_components(
    rows: NDArray[np.float64],
) -> tuple[NDArray[np.float64], tuple[float, ...]]:
    """Return the scores of the first three components and their shares of the variance.

    Args:
        rows: (M, D).

    Returns:
        (M, 3), zeros for a component that the rows do not have; at most three shares.
    """
    from sklearn.decomposition import PCA

    scores = np.zeros((len(rows), 3))
    if not np.ptp(rows, axis=0).any():  # all are one; shares of no variance are undefined
        return scores, ()
    # by the covariance: as exact as an SVD to 1e-8 of the largest component, and many times faster
    pca = PCA(n_components=min(3, *rows.shape), svd_solver="covariance_eigh")
    for place, column in enumerate(pca.fit_transform(rows).T):
        scores[:, place] = _rarer_side_up(column)
    return scores, tuple(pca.explained_variance_ratio_.tolist())


def _rarer_side_up(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turn a component so that its third moment is positive; an even one is as sklearn has it."""
    deviation = scores.std()
    skewness = (scores**3).mean() / deviation**3 if deviation else 0.0
    return -scores if skewness < -_EVEN else scores


def _scale(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bring each column to [0, 1]; one without differences to the middle."""
    low, high = np.quantile(scores, (CUT, 1 - CUT), axis=0)
    width = high - low
    scaled = (scores - low) / np.where(width > 0, width, 1)
    return np.where(width > 0, scaled.clip(0, 1), 0.5)
