"""Linear probing by MAE's protocol: frozen encoder, BatchNorm without affine, a Linear, LARS."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asl_core import distributed
from asl_core.data.loaders import TrainingLoader
from asl_core.data.shards import PackedDataset
from asl_core.data.views import collate_labelled, normalise, train_crop_transform
from asl_core.engine.loop import RunContext, fit
from asl_core.engine.optimizer import lars_groups, no_decay_groups
from asl_core.modules.encoder import Encoder, load_encoder
from asl_core.protocol import Draw, Step
from asl_core.randomness import derive_seed, seeded_globals
from asl_core.recipes.normalisation import Rgb
from asl_core.recipes.transfer import LinearProbe
from asl_core.transfer.classification import Predictions, gather_predictions
from asl_core.transfer.features import FeatureBatch, extract_features, labelled_dataset, pool


class ProbeHead(nn.Module):
    """BatchNorm (no affine, eps 1e-6, batch statistics in training), then a Linear.

    Source: official MAE `main_linprobe.py`.

    Shape:
        - features: (B, D). Output: (B, K).
    """

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, affine=False, eps=1e-6)
        self.linear = nn.Linear(width, num_classes)
        nn.init.trunc_normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(self.norm(features.float()))


class FeatureProbe(nn.Module):
    """Probe on features that were computed before."""

    def __init__(self, head: ProbeHead) -> None:
        super().__init__()
        self.head = head

    def forward(self, batch: FeatureBatch, draw: Draw) -> Step:
        return Step(F.cross_entropy(self.head(batch.features), batch.labels))

    def after_step(self, step: int) -> None:
        """Nothing follows a step."""


class ImageProbe(nn.Module):
    """Probe on augmented images, through the frozen encoder."""

    def __init__(
        self, encoder: Encoder, head: ProbeHead, pooling: str, mean: Rgb, std: Rgb
    ) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(False)
        self.head, self.pooling, self.mean, self.std = head, pooling, mean, std

    def forward(self, batch: Any, draw: Draw) -> Step:
        self.encoder.eval()
        with torch.no_grad():
            tokens = self.encoder(normalise(batch.images, self.mean, self.std))
        logits = self.head(pool(tokens, self.pooling))
        return Step(F.cross_entropy(logits, batch.labels))

    def after_step(self, step: int) -> None:
        """Nothing follows a step."""


class _CachedFeatures:
    """Features as a dataset, one row a sample."""

    def __init__(self, features: FeatureBatch) -> None:
        self.features = features

    def __len__(self) -> int:
        return len(self.features.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        return tuple(tensor[index] for tensor in self.features)  # type: ignore[return-value]


def linprobe(
    recipe: LinearProbe, encoder_folder: Path, dataset_folder: Path, context: RunContext
) -> tuple[ProbeHead, Predictions]:
    """Train a probe and predict the test split.

    Raises:
        InputError: No encoder, no labels, or a batch larger than the training split.
    """
    encoder = load_encoder(encoder_folder, image_size=recipe.image_size)
    train = labelled_dataset(dataset_folder, "train")
    with seeded_globals(derive_seed(recipe.seed, "init")):
        head = ProbeHead(encoder.vit.embed_dim, train.num_classes)
    if recipe.augment:
        _fit_on_images(recipe, encoder, head, train, context)
    else:
        _fit_on_features(recipe, encoder, head, train, context)
    test = labelled_dataset(dataset_folder, "test")
    features = extract_features(
        encoder,
        test,
        pooling=recipe.pooling,
        precision=recipe.precision,
        resources=context.resources,
    )
    head.cpu().eval()
    with torch.no_grad():
        logits = head(features.features)
    return head, gather_predictions(features.indices, features.labels, logits)


def _fit_on_images(
    recipe: LinearProbe,
    encoder: Encoder,
    head: ProbeHead,
    train: PackedDataset,
    context: RunContext,
) -> None:
    transform = train_crop_transform(encoder.vit.image_size, recipe.crop_scale_min, recipe.flip)
    loader = _loader(recipe, train, transform, collate_labelled, context)
    mean, std = train.manifest.mean, train.manifest.std
    probe = ImageProbe(encoder, head, recipe.pooling, mean, std)
    fit(probe, loader, recipe, context, param_groups=_groups(probe, recipe))


def _fit_on_features(
    recipe: LinearProbe,
    encoder: Encoder,
    head: ProbeHead,
    train: PackedDataset,
    context: RunContext,
) -> None:
    """Train on features computed once: without augmentation they never change."""
    share = extract_features(
        encoder,
        train,
        pooling=recipe.pooling,
        precision=recipe.precision,
        resources=context.resources,
    )
    shares = distributed.gather_objects(share)
    rows = FeatureBatch(*(torch.cat(parts) for parts in zip(*shares, strict=True)))
    order = torch.argsort(rows.indices)
    cached = _CachedFeatures(FeatureBatch(*(tensor[order] for tensor in rows)))
    loader = _loader(recipe, cached, _identity, _collate_features, context)
    probe = FeatureProbe(head)
    fit(probe, loader, recipe, context, param_groups=_groups(probe, recipe))


def _groups(probe: nn.Module, recipe: LinearProbe) -> list[dict[str, Any]]:
    return lars_groups(probe) if recipe.optimizer == "lars" else no_decay_groups(probe, recipe)


def _loader(
    recipe: LinearProbe, dataset: Any, transform: Any, collate: Any, context: RunContext
) -> TrainingLoader:
    return TrainingLoader(
        dataset,
        transform,
        collate,
        seed=recipe.seed,
        batch_size=recipe.batch_size,
        epochs=recipe.epochs,
        micro_batch_size=context.resources.micro_batch_size,
        num_workers=context.resources.num_workers,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
    )


def _identity(item: Any) -> Any:
    return item


def _collate_features(items: list[tuple[Tensor, Tensor, Tensor]]) -> FeatureBatch:
    return FeatureBatch(*(torch.stack(column) for column in zip(*items, strict=True)))
