"""Token similarity of an encoder on a dataset: all numbers of Figure 1 and its companions."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from asl_core.analysis.cka import cka_across_positions, unbiased_cka
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
from asl_core.recipes.analysis import TokenAnalysis
from asl_core.recipes.optimisation import Resources

NUM_POSITION_PAIRS = 500
MAX_CKA_IMAGES = 1000  # bounds the memory of (images, patches, width); no others are kept
NUM_PICTURES = 8
GOLDEN = (5**0.5 - 1) / 2
BATCH_SIZE = 32  # bounds the memory of all layers' tokens


@dataclass(frozen=True)
class TokenReport:
    """Numbers of one encoder.

    Attributes:
        metrics: Scalars by name; `_se` is the standard error of a mean over the images.
        per_layer: Mean token cosine of the embedded patches with their positions, then after each
            block, before the final norm.
        cka_to_last: CKA of the mean token of each of these layers with that of the encoder's
            output; empty for fewer than four images.
        images: The first images, uint8 (B, 3, S, S).
        maps: Cosine of the central patch to all others, for each of `images`, (B, G, G).
    """

    metrics: dict[str, float]
    per_layer: list[float]
    cka_to_last: list[float]
    images: Tensor
    maps: Tensor


class _Batch(NamedTuple):
    """What an encoder makes of some images.

    Attributes:
        images: uint8, (B, 3, S, S).
        objects: Each image's object by patch, (N,), or None where nobody annotated it.
        tokens: Patch tokens of the last block after the final norm, (B, N, D).
        layers: The embedded patches, then every block's tokens before the norm, each (B, N, D).
    """

    images: Tensor
    objects: list[Tensor | None]
    tokens: Tensor
    layers: list[Tensor]


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

    Patch tokens are those of the last block after the final norm, [cls] excluded. The images are
    gone through twice, as the centred cosine subtracts a mean over all of them; memory does not
    grow with their number.
    """
    device = pick_device(resources)
    encoder.to(device).eval()
    count = min(recipe.images, len(dataset))
    cosines, ranks, curves = [], [], []
    kept, pooled, images = [], [], []
    total = torch.zeros(encoder.vit.embed_dim, dtype=torch.float64, device=device)
    pairs = _ObjectPairs()
    for batch in _batches(encoder, dataset, count, resources):
        cosines.append(mean_token_cosine(batch.tokens).cpu())
        ranks.append(effective_rank(batch.tokens).cpu())
        curves.append(torch.stack([mean_token_cosine(x) for x in batch.layers], dim=1).cpu())
        total += batch.tokens.double().sum(dim=(0, 1))
        on_cpu = batch.tokens.cpu()
        pairs.add(on_cpu, batch.objects)
        room = MAX_CKA_IMAGES - sum(map(len, kept))
        kept.append(on_cpu[:room])
        means = [x[:room].mean(dim=1) for x in (*batch.layers, batch.tokens)]
        pooled.append(torch.stack(means).cpu())  # (L + 2, B, D)
        images.append(batch.images[: NUM_PICTURES - sum(map(len, images))])
    tokens = torch.cat(kept)
    mean_token = (total / (count * tokens.shape[1])).float()
    centred = [
        mean_token_cosine(batch.tokens - mean_token).cpu()
        for batch in _batches(encoder, dataset, count, resources)
    ]
    metrics = (
        _mean("token_similarity", torch.cat(cosines))
        | _mean("token_similarity_centred", torch.cat(centred))
        | _mean("effective_rank", torch.cat(ranks))
        | {"cka_positions": _cka(tokens, recipe.seed)}
        | pairs.metrics()
    )
    curve = torch.cat(curves).mean(dim=0).tolist()
    metrics |= {f"token_similarity_layer_{i}": value for i, value in enumerate(curve)}
    return TokenReport(
        metrics,
        curve,
        _cka_to_last(torch.cat(pooled, dim=1)),
        torch.cat(images),
        _central_maps(tokens[:NUM_PICTURES]),
    )


def _batches(
    encoder: Encoder, dataset: PackedDataset, count: int, resources: Resources
) -> Iterator[_Batch]:
    """Go through `count` images once, evenly spread over the split.

    The first ones are spread likewise, for CKA and pictures stop early.
    """
    vit, device = encoder.vit, next(encoder.parameters()).device
    loader = evaluation_batches(
        dataset,
        _Whole(vit.image_size, vit.patch_size),
        _collate,
        batch_size=BATCH_SIZE,
        num_workers=resources.num_workers,
        subset=spread(count, len(dataset)),
    )
    for images, objects in loader:
        tokens, layers = _tokens(encoder, move(images, device), dataset)
        yield _Batch(images, objects, tokens, layers)


def spread(count: int, total: int) -> list[int]:
    """Return `count` of `total` indices, evenly spread, in an order of which each beginning is too.

    In the order of the fractions of i * 0.618..., the golden ratio: whichever is the largest
    fraction taken, the numbers i below it lie at no more than three different distances.
    """
    order = sorted(range(count), key=lambda i: i * GOLDEN % 1)
    return [i * total // count for i in order]


def _collate(items: list[tuple[Tensor, Tensor | None]]) -> tuple[Tensor, list[Tensor | None]]:
    return torch.stack([image for image, _ in items]), [objects for _, objects in items]


@torch.no_grad()
def _tokens(
    encoder: Encoder, images: Tensor, dataset: PackedDataset
) -> tuple[Tensor, list[Tensor]]:
    """Return normed patch tokens of the last block, and those of every layer, each (B, N, D)."""
    inputs = normalise(images, dataset.manifest.mean, dataset.manifest.std)
    embedded = encoder.add_positions(encoder.embed(inputs))
    layers = encoder.layers(inputs)
    tokens = encoder.norm(layers[-1])[:, 1:].float()
    return tokens, [embedded.float(), *(x[:, 1:].float() for x in layers)]


def _mean(name: str, values: Tensor) -> dict[str, float]:
    """Return the mean over the images and its standard error, nan for a single image."""
    error = values.std() / len(values) ** 0.5 if len(values) > 1 else torch.tensor(float("nan"))
    return {name: values.mean().item(), f"{name}_se": error.item()}


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


def _cka_to_last(pooled: Tensor) -> list[float]:
    """Return the CKA of each layer's mean tokens with the last's; (L, M, D)."""
    if pooled.shape[1] < 4:
        return []
    pooled = pooled.double()
    return [unbiased_cka(layer, pooled[-1]).item() for layer in pooled[:-1]]


class _ObjectPairs:
    """Cosines inside one object and across two, over all pairs of patches of each image."""

    def __init__(self) -> None:
        # sum of cosines and number of pairs, of which float32 could not count enough
        self.inside = torch.zeros(2, dtype=torch.float64)
        self.across = torch.zeros(2, dtype=torch.float64)

    def add(self, tokens: Tensor, objects: list[Tensor | None]) -> None:
        """Count the pairs of a batch, (B, N, D)."""
        for image_tokens, owners in zip(tokens, objects, strict=True):
            if owners is not None:
                inside, across = inside_and_across(image_tokens, owners)
                self.inside, self.across = self.inside + inside, self.across + across

    def metrics(self) -> dict[str, float]:
        """Return both means; nothing where there are no pairs of either kind."""
        if self.inside[1] == 0 or self.across[1] == 0:
            return {}
        return {
            "similarity_inside": (self.inside[0] / self.inside[1]).item(),
            "similarity_across": (self.across[0] / self.across[1]).item(),
        }


def _central_maps(tokens: Tensor) -> Tensor:
    """Return the cosine of the central patch's token to every token, (B, G, G)."""
    side = round(tokens.shape[1] ** 0.5)
    centre = side // 2 * side + side // 2
    units = torch.nn.functional.normalize(tokens, dim=-1)
    return (units @ units[:, centre, :, None]).reshape(-1, side, side)
