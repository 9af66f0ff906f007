"""Frozen features of an encoder."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from asl_core import distributed
from asl_core.data.loaders import evaluation_batches
from asl_core.data.shards import PackedDataset
from asl_core.data.views import collate_labelled, evaluation_transform, normalise
from asl_core.engine.devices import autocast, move, pick_device
from asl_core.errors import InputError
from asl_core.modules.encoder import NORM_EPS, Encoder
from asl_core.recipes.optimisation import Resources

POOLINGS = ("cls", "mean")
CHUNK = 4096
"""Images that one process encodes on end."""


class FeatureBatch(NamedTuple):
    """Features by pooling and block with labels: (B, K, D), (B,) int64, (B,) int64."""

    features: Tensor
    labels: Tensor
    indices: Tensor


def mean_of_patches(tokens: Tensor) -> Tensor:
    """Leave [cls] out and average the others; (B, 1 + N, D) to (B, D)."""
    return tokens[:, 1:].mean(dim=1)


def frozen_features(
    encoder: Encoder, images: Tensor, poolings: Sequence[str], blocks: int = 1
) -> Tensor:
    """Encode normalised images and reduce each to one vector a pooling and block.

    cls: [cls] after the encoder's final norm. mean: the mean of the patches before it, then a norm
    of its own without parameters, as MAE's and SIM's probes with global pooling begin (their fresh
    norm is frozen at 1 and 0). Blocks before the last are treated alike, as DINOv2's linear
    evaluation puts its final norm behind each of them.

    Args:
        encoder: In evaluation.
        images: Normalised.
        poolings: cls, mean.
        blocks: How many of the last ones.

    Shape:
        - images: (B, 3, H, W). Output: (B, poolings * blocks, D), pooling by pooling, the last
          block of each first.
    """
    if blocks == 1:
        outputs = [encoder.before_norm(images)]  # (B, 1 + N, D)
    else:
        outputs = encoder.layers(images)[: -blocks - 1 : -1]
    features = {
        "cls": lambda tokens: encoder.norm(tokens[:, 0]),
        "mean": lambda tokens: F.layer_norm(
            mean_of_patches(tokens), tokens.shape[-1:], eps=NORM_EPS
        ),
    }
    return torch.stack(
        [features[pooling](tokens) for pooling in poolings for tokens in outputs], dim=1
    )


def labelled_dataset(folder: Path, split: str) -> PackedDataset:
    """Open a split that has labels.

    Raises:
        InputError: The dataset has none, or an image of the split has none.
    """
    dataset = PackedDataset(folder, split)
    if not dataset.has_labels:
        raise InputError(
            f"dataset {dataset.manifest.name} in {folder} has no labels; "
            "choose one with labels for classification"
        )
    without = int((dataset.labels < 0).sum())
    if without:
        raise InputError(
            f"dataset {dataset.manifest.name} in {folder} has {without} images without a label "
            f"in its {split} split; choose one with all labels for classification"
        )
    return dataset


def extract_features(
    encoder: Encoder,
    dataset: PackedDataset,
    *,
    poolings: Sequence[str],
    precision: str,
    resources: Resources,
    batch_size: int = 256,
) -> FeatureBatch:
    """Return this process's share of a split's features, without augmentation, in index order.

    With more processes than samples the share of some is empty.

    Returns:
        (S, K, D) float32, labels, indices.
    """
    own = range(distributed.rank(), len(dataset), distributed.world_size())
    if not own:
        none = torch.empty(0, dtype=torch.int64)
        return FeatureBatch(torch.empty(0, len(poolings), encoder.vit.embed_dim), none, none)

    def reduce(images: Tensor) -> Tensor:
        return frozen_features(encoder, images, poolings)

    features = encode(
        encoder, dataset, own, reduce, precision=precision, resources=resources,
        batch_size=batch_size,
    )  # fmt: skip
    indices = torch.tensor(own)
    return FeatureBatch(features, torch.from_numpy(dataset.labels)[indices], indices)


@torch.no_grad()
def encode(
    encoder: Encoder,
    dataset: PackedDataset,
    indices: Sequence[int],
    reduce: Callable[[Tensor], Tensor],
    *,
    precision: str,
    resources: Resources,
    batch_size: int = 256,
) -> Tensor:
    """Return what an encoder, or what follows it, makes of images, without augmentation.

    Args:
        encoder: Moved to the device of the resources; in evaluation afterwards.
        dataset: A split.
        indices: Of it; this process encodes all of them.
        reduce: What becomes of normalised images: (B, 3, H, W) to (B, ...).
        precision: Of the encoder.
        resources: Device, workers.
        batch_size: Images that go through the encoder together.

    Returns:
        (indices, ...) float32, on the CPU.
    """
    device = pick_device(resources)
    encoder.to(device).eval()
    mean, std = dataset.manifest.mean, dataset.manifest.std
    batches = evaluation_batches(
        dataset,
        evaluation_transform(encoder.vit.image_size),
        collate_labelled,
        batch_size=batch_size,
        num_workers=resources.num_workers,
        subset=indices,
    )
    parts = []
    for batch in batches:
        with autocast(device, precision):
            parts.append(reduce(normalise(move(batch.images, device), mean, std)).float().cpu())
    return torch.cat(parts)


def encode_together(
    encoder: Encoder,
    dataset: PackedDataset,
    indices: Sequence[int],
    reduce: Callable[[Tensor], Tensor],
    *,
    precision: str,
    resources: Resources,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return the same to every process, each of which encodes some chunks of `CHUNK` images.

    A chunk is the same images in the same batches whoever encodes it: the number of processes
    changes no bit.
    """
    starts = range(0, len(indices), CHUNK)
    own = {
        start: encode(
            encoder, dataset, indices[start : start + CHUNK], reduce,
            precision=precision, resources=resources,
        ).to(dtype)
        for start in starts[distributed.rank() :: distributed.world_size()]
    }  # fmt: skip
    by_start = {k: rows for share in distributed.gather_objects(own) for k, rows in share.items()}
    return torch.cat([by_start[start] for start in starts])
