"""One vector for each image, and the vectors of its patches: how an encoder is read."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from asl_core.data.shards import PackedDataset
from asl_core.errors import InputError
from asl_core.modules.encoder import NORM_EPS, Encoder
from asl_core.recipes.embedding import LAST, POOLINGS, Pooling, require_layer
from asl_core.recipes.normalisation import Rgb
from asl_core.recipes.optimisation import Resources
from asl_core.transfer.features import encode_together, mean_of_patches


@dataclass(frozen=True)
class Reading:
    """What is read of an encoder.

    Attributes:
        pooling: cls, mean, or both one behind the other.
        layer: Which block, counted from the last, -1.
        patch_tokens: Whether the vectors of the patches are wanted too.

    Raises:
        ValueError: There is no such pooling, or the layer counts from no end.
    """

    pooling: Pooling = "cls"
    layer: int = LAST
    patch_tokens: bool = False

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, got {self.pooling!r}")
        require_layer(self.layer)

    def dimension(self, width: int) -> int:
        """Return the length of an image's vector, given the encoder's width."""
        return width * len(self.pooling.split("+"))


@dataclass(frozen=True)
class InputForm:
    """From a picture to what the encoder sees.

    Attributes:
        image_size: Side of the square: the short side is resized to 256/224 of it, bicubic, and
            the centre is cut out; a square of this size stays as it is.
        mean: Of R, G, B in [0, 1].
        std: Likewise.
    """

    image_size: int
    mean: Rgb
    std: Rgb


class ReadOut(NamedTuple):
    """What was read of some images.

    Attributes:
        vectors: (B, E).
        patches: (B, N, D), row by row from the top left; None where nobody wanted them.
    """

    vectors: Tensor
    patches: Tensor | None


def read_out(encoder: Encoder, images: Tensor, reading: Reading) -> ReadOut:
    """Encode images and reduce each to one vector.

    cls and mean are what `frozen_features` makes of a block: [cls] after the encoder's final norm;
    the mean of the patches before it, then a norm of its own without parameters. Patches come
    after the final norm, as DINOv2 hands them out. All blocks are treated alike.

    Args:
        encoder: In evaluation.
        images: Normalised, (B, 3, S, S).
        reading: What is read.
    """
    if reading.layer == LAST:
        tokens = encoder.before_norm(images)  # (B, 1 + N, D)
    else:
        tokens = encoder.layers(images)[reading.layer]
    parts: list[Tensor] = []
    for pooling in reading.pooling.split("+"):
        if pooling == "cls":
            parts.append(encoder.norm(tokens[:, 0]))
        else:
            mean = mean_of_patches(tokens)
            parts.append(F.layer_norm(mean, mean.shape[-1:], eps=NORM_EPS))
    patches = encoder.norm(tokens[:, 1:]) if reading.patch_tokens else None
    return ReadOut(torch.cat(parts, dim=1), patches)


def check_layer(encoder: Encoder, layer: int) -> None:
    """Refuse a block that the encoder does not have.

    Raises:
        InputError: There are fewer.
    """
    if -layer > encoder.vit.depth:
        raise InputError(
            f"layer {layer} of an encoder of {encoder.vit.depth} blocks; "
            f"use -1 to -{encoder.vit.depth}"
        )


def embed_split(
    encoder: Encoder,
    dataset: PackedDataset,
    reading: Reading,
    *,
    precision: str,
    resources: Resources,
    indices: Sequence[int] | None = None,
) -> Tensor:
    """Return the vectors of a split's images, in their order, as other evaluations see them.

    Every process gets all, and has encoded some chunks.

    Args:
        encoder: Moved to the device of the resources.
        dataset: The split.
        reading: What is read; patches are not.
        precision: Of the encoder.
        resources: Device, workers.
        indices: Which images; absent: all.

    Returns:
        (N, E), float32.

    Raises:
        InputError: The encoder has fewer blocks, or its vectors are not finite.
    """
    check_layer(encoder, reading.layer)
    chosen = range(len(dataset)) if indices is None else indices
    vectors = encode_together(
        encoder, dataset, chosen, lambda images: read_out(encoder, images, reading).vectors,
        precision=precision, resources=resources,
    )  # fmt: skip
    if not bool(vectors.isfinite().all()):
        raise InputError(
            "the encoder makes embeddings that are not finite; look at its pre-training"
        )
    return vectors
