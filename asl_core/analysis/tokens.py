"""Token similarity of an encoder on a dataset: all numbers of Figure 1 and its companions."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from asl_core.analysis.cka import cka_across_positions
from asl_core.analysis.similarity import (
    effective_rank,
    inside_and_across,
    mean_token_cosine,
    patch_objects,
)
from asl_core.data.loaders import evaluation_batches
from asl_core.data.samples import Sample
from asl_core.data.shards import PackedDataset
from asl_core.data.views import normalise
from asl_core.engine.devices import move, pick_device
from asl_core.modules.encoder import Encoder
from asl_core.randomness import torch_generator
from asl_core.recipes.optimisation import Resources
from asl_core.recipes.transfer import TokenAnalysis

NUM_POSITION_PAIRS = 500
MAX_CKA_IMAGES = 1000  # bounds the memory of (images, patches, width)


@dataclass(frozen=True)
class TokenReport:
    """Numbers of one encoder.

    Attributes:
        metrics: Scalars by name.
        per_layer: Mean token cosine after each block, before the final norm.
        images: The first images, uint8 (B, 3, S, S).
        maps: Cosine of the central patch to all others, for each of `images`, (B, G, G).
    """

    metrics: dict[str, float]
    per_layer: list[float]
    images: Tensor
    maps: Tensor


@dataclass(frozen=True)
class _Whole:
    """Resizes the short side and crops the centre, masks with the image: (image, objects)."""

    image_size: int
    patch_size: int

    def __call__(self, sample: Sample) -> tuple[Tensor, Tensor | None]:
        image, size = sample.image, self.image_size
        masks = None
        if sample.instances is not None:
            masks = sample.instances.masks[~sample.instances.crowd]
        if image.shape[-2:] != (size, size):
            short = int(size * 256 / 224)
            image = F.center_crop(
                F.resize(image, [short], F.InterpolationMode.BICUBIC, antialias=True), [size]
            )
            if masks is not None:
                nearest = F.InterpolationMode.NEAREST
                masks = F.center_crop(F.resize(masks.byte(), [short], nearest), [size]).bool()
        objects = None if masks is None else patch_objects(masks, self.patch_size)
        return image, objects


def analyse_tokens(
    encoder: Encoder, dataset: PackedDataset, recipe: TokenAnalysis, resources: Resources
) -> TokenReport:
    """Measure the similarity of patch tokens on unmasked test images, in float32.

    Patch tokens are those of the last block after the final norm, [cls] excluded.
    """
    device = pick_device(resources)
    encoder.to(device).eval()
    count = min(recipe.images, len(dataset))
    # first pass: the mean token, which the centred cosine subtracts
    cosines, layers, ranks, kept, objects, images = [], [], [], [], [], []
    for batch_images, batch_objects in _batches(encoder, dataset, count, resources):
        tokens, per_layer = _tokens(encoder, move(batch_images, device), dataset)
        cosines.append(mean_token_cosine(tokens).cpu())
        ranks.append(effective_rank(tokens).cpu())
        layers.append(torch.stack([mean_token_cosine(x) for x in per_layer], dim=1).cpu())
        kept.append(tokens.cpu())
        objects.extend(batch_objects)
        images.append(batch_images)
    tokens, cosine = torch.cat(kept), torch.cat(cosines)
    mean_token = tokens.mean(dim=(0, 1))
    metrics = {
        "token_similarity": cosine.mean().item(),
        "token_similarity_se": (cosine.std() / count**0.5).item(),
        "token_similarity_centred": mean_token_cosine(tokens - mean_token).mean().item(),
        "effective_rank": torch.cat(ranks).mean().item(),
        "cka_positions": _cka(tokens, recipe.seed),
    }
    metrics |= _by_object(tokens, objects)
    curve = torch.cat(layers).mean(dim=0).tolist()
    metrics |= {f"token_similarity_layer_{i + 1}": value for i, value in enumerate(curve)}
    return TokenReport(metrics, curve, torch.cat(images)[:8], _central_maps(tokens[:8]))


def _batches(encoder: Encoder, dataset: PackedDataset, count: int, resources: Resources) -> Any:
    vit = encoder.vit
    return evaluation_batches(
        dataset,
        _Whole(vit.image_size, vit.patch_size),
        _collate,
        batch_size=64,
        num_workers=resources.num_workers,
        subset=range(count),
    )


def _collate(items: list[tuple[Tensor, Tensor | None]]) -> tuple[Tensor, list[Tensor | None]]:
    return torch.stack([image for image, _ in items]), [objects for _, objects in items]


@torch.no_grad()
def _tokens(
    encoder: Encoder, images: Tensor, dataset: PackedDataset
) -> tuple[Tensor, list[Tensor]]:
    """Return normed patch tokens of the last block, and every block's, each (B, N, D)."""
    layers = encoder.layers(normalise(images, dataset.manifest.mean, dataset.manifest.std))
    return encoder.norm(layers[-1])[:, 1:].float(), [x[:, 1:].float() for x in layers]


def _cka(tokens: Tensor, seed: int) -> float:
    """Return CKA across random pairs of different positions; needs more than three images."""
    tokens = tokens[:MAX_CKA_IMAGES]
    if len(tokens) < 4:
        return float("nan")
    generator = torch_generator(seed, "cka")
    first = torch.randint(tokens.shape[1], (NUM_POSITION_PAIRS,), generator=generator)
    step = torch.randint(1, tokens.shape[1], (NUM_POSITION_PAIRS,), generator=generator)
    pairs = torch.stack([first, (first + step) % tokens.shape[1]], dim=1)
    return cka_across_positions(tokens, pairs).item()


def _by_object(tokens: Tensor, objects: list[Tensor | None]) -> dict[str, float]:
    """Return mean cosines inside one object and across two, over all pairs of the dataset."""
    inside, across = torch.zeros(2), torch.zeros(2)
    for image_tokens, owners in zip(tokens, objects, strict=True):
        if owners is not None:
            image_inside, image_across = inside_and_across(image_tokens, owners)
            inside, across = inside + image_inside, across + image_across
    if inside[1] == 0 or across[1] == 0:
        return {}
    return {
        "similarity_inside": (inside[0] / inside[1]).item(),
        "similarity_across": (across[0] / across[1]).item(),
    }


def _central_maps(tokens: Tensor) -> Tensor:
    """Return the cosine of the central patch's token to every token, (B, G, G)."""
    side = round(tokens.shape[1] ** 0.5)
    centre = side // 2 * side + side // 2
    units = torch.nn.functional.normalize(tokens, dim=-1)
    return (units @ units[:, centre, :, None]).reshape(-1, side, side)
