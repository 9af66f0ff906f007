"""What an encoder makes of test images: the same images for every encoder."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asl_core.analysis.attention import cls_attention
from asl_core.analysis.neighbours import Nearest, nearest_neighbours
from asl_core.analysis.patch_colours import PatchColours, patch_colours
from asl_core.analysis.pictured import compared_images, pictured_images
from asl_core.analysis.projection import LEAST, apart, project
from asl_core.data.shards import PackedDataset
from asl_core.data.views import evaluation_transform, normalise
from asl_core.modules.encoder import Encoder
from asl_core.recipes.analysis import TokenAnalysis
from asl_core.recipes.optimisation import Resources
from asl_core.transfer.features import encode, frozen_features

NUM_NEIGHBOURS = 5
_SCALE_TOP = 0.995
"""Quantile of attention at the top of its scale: a few patches may have many times the others'."""

_NOT_INSTALLED = "{} is not installed where this run was made"
"""As on a machine that was lent for it, where little but torch is."""


@dataclass(frozen=True)
class Shown:
    """An image with its class.

    Attributes:
        index: In the test split.
        pixels: As the encoder gets it, (S, S, 3) uint8.
        label: Name of its class; None where it has none.
    """

    index: int
    pixels: NDArray[np.uint8]
    label: str | None


@dataclass(frozen=True)
class EncoderView:
    """What an encoder makes of test images.

    Attributes:
        pictured: The images that are the same for every encoder, B of them.
        compared: Indices of all images that have a vector; the first are those of `pictured`.
        left_out: Kind of picture -> why there is none.
        colours: Of the patches, (B, N, 3).
        attention: Of [cls] by head, times the even share over the patches, (B, heads, G, G).
        nearest: Of the pictured images among all, in places of `compared`.
        neighbours: Those images, by pictured image.
        plane: Of all images, (compared, 2).
        scattered: Images to be drawn in the plane where it has no classes, by place of `compared`.
        labels: Of all images; None where one has no class.
    """

    pictured: list[Shown]
    compared: list[int]
    left_out: dict[str, str] = field(default_factory=dict[str, str])
    colours: PatchColours | None = None
    attention: Tensor | None = None
    nearest: Nearest | None = None
    neighbours: list[list[Shown]] = field(default_factory=list[list[Shown]])
    plane: NDArray[np.float32] | None = None
    scattered: dict[int, Shown] = field(default_factory=dict[int, Shown])
    labels: list[str | None] = field(default_factory=list[str | None])


def look(
    encoder: Encoder, dataset: PackedDataset, recipe: TokenAnalysis, resources: Resources
) -> EncoderView:
    """Encode the images, in float32, and find out all that is shown.

    What cannot be shown, as with a single image or features that are not finite, is left out with
    its reason.
    """
    chosen = pictured_images(recipe.pictured, len(dataset))
    compared = compared_images(chosen, recipe.compared, len(dataset))
    pictured = [_shown(encoder, dataset, index) for index in chosen]
    labels = [_label(dataset, index) for index in compared]

    def tokens_of(images: Tensor) -> Tensor:
        return encoder(images)[:, 1:]

    def vectors_of(images: Tensor) -> Tensor:
        return frozen_features(encoder, images, (recipe.pooling,))[:, 0]

    tokens, vectors = (
        encode(encoder, dataset, indices, reduce, precision="fp32", resources=resources)
        for indices, reduce in ((chosen, tokens_of), (compared, vectors_of))
    )
    if not (tokens.isfinite().all() and vectors.isfinite().all()):
        return EncoderView(
            pictured, compared, {"pictures": "the encoder's features are not finite"}
        )
    left_out: dict[str, str] = {}
    nearest, neighbours = None, []
    if len(compared) > 1:
        nearest = nearest_neighbours(vectors, range(len(chosen)), NUM_NEIGHBOURS)
        neighbours = [
            [_shown(encoder, dataset, compared[place]) for place in places]
            for places in nearest.places.tolist()
        ]
    else:
        left_out["nearest neighbours"] = "the test split has one image"
    plane = _plane(vectors, recipe, left_out)
    scattered: dict[int, Shown] = {}
    if plane is not None and not any(labels):
        places = apart(plane)
        scattered = {place: _shown(encoder, dataset, compared[place]) for place in places}
    return EncoderView(
        pictured, compared, left_out,
        colours=_colours(tokens, recipe, left_out),
        attention=_attention(encoder, dataset, pictured),
        nearest=nearest,
        neighbours=neighbours,
        plane=plane,
        scattered=scattered,
        labels=labels,
    )  # fmt: skip


def _colours(
    tokens: Tensor, recipe: TokenAnalysis, left_out: dict[str, str]
) -> PatchColours | None:
    """Colour the patches, or say why not."""
    try:
        return patch_colours(tokens, foreground=recipe.foreground)
    except ImportError as error:
        left_out["colours of patches"] = _NOT_INSTALLED.format(error.name)
        return None


def _plane(
    vectors: Tensor, recipe: TokenAnalysis, left_out: dict[str, str]
) -> NDArray[np.float32] | None:
    """Lay all images out by UMAP, or say why not."""
    reason = ""
    if not recipe.umap:
        reason = "umap is false in params.yaml"
    elif len(vectors) < LEAST:
        reason = f"it needs at least {LEAST} images, here are {len(vectors)}"
    else:
        try:
            return project(vectors)
        except ImportError as error:
            reason = _NOT_INSTALLED.format(error.name)
        except RuntimeError as error:
            reason = f"{error}; set NUMBA_CACHE_DIR to a folder that can be written"
    left_out["UMAP"] = reason
    return None


def _attention(encoder: Encoder, dataset: PackedDataset, pictured: Sequence[Shown]) -> Tensor:
    """Return the attention of [cls] by head in units of an even share: 1 where it favours none."""
    images = torch.stack([torch.from_numpy(each.pixels).permute(2, 0, 1) for each in pictured])
    inputs = normalise(images, dataset.manifest.mean, dataset.manifest.std)
    maps = cls_attention(encoder.cpu().eval(), inputs)  # (B, heads, G, G)
    return maps * maps[0, 0].numel()


def _shown(encoder: Encoder, dataset: PackedDataset, index: int) -> Shown:
    item = evaluation_transform(encoder.vit.image_size)(dataset[index])
    return Shown(index, item.image.permute(1, 2, 0).numpy(), _label(dataset, index))


def _label(dataset: PackedDataset, index: int) -> str | None:
    names, label = dataset.manifest.classes, int(dataset.labels[index])
    return names[label] if names is not None and label >= 0 else None


def attention_top(maps: Tensor) -> float:
    """Return where the scale of some maps ends: few patches are beyond."""
    return float(np.quantile(maps.numpy(), _SCALE_TOP)) or 1.0
