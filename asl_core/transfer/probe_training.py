"""Training the heads of a probe, linear or attentive, on images or on what was computed of them."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from asl_core import distributed
from asl_core.data.sampler import StepPlan
from asl_core.data.shards import PackedDataset
from asl_core.data.views import LabelledBatch, collate_labelled, normalise, train_crop_transform
from asl_core.engine.context import RunContext
from asl_core.engine.loading import training_loader
from asl_core.engine.loop import fit
from asl_core.modules.encoder import Encoder
from asl_core.protocol import Draw, ModuleLike, Step
from asl_core.recipes.normalisation import Rgb
from asl_core.recipes.probing import Probing
from asl_core.transfer.choice import split_held_out
from asl_core.transfer.feature_loader import FeatureLoader
from asl_core.transfer.features import FeatureBatch
from asl_core.transfer.probe_step import Progress, heads_step


class Heads(ModuleLike, Protocol):
    """Classifiers that read the same and are trained together, by name."""

    @property
    def names(self) -> Sequence[str]: ...

    def read(self, encoder: Encoder, images: Tensor) -> Tensor:
        """Return what the heads see of normalised images."""
        ...

    def groups(self, recipe: Any, /) -> list[dict[str, Any]]:
        """Return the optimiser's groups."""
        ...

    def __call__(self, features: Tensor, /) -> dict[str, Tensor]: ...


class FeatureProbe(nn.Module):
    """Probe on features that were computed before."""

    def __init__(self, heads: Heads, progress: Progress) -> None:
        super().__init__()
        self.heads, self.progress = heads, progress

    def forward(self, batch: FeatureBatch, draw: Draw) -> Step:
        return heads_step(self.heads(batch.features), batch.labels, draw, self.progress)

    def take_statistics(self, statistics: Mapping[str, Tensor]) -> None:
        self.progress.add(statistics)


class ImageProbe(nn.Module):
    """Probe on augmented images, through the frozen encoder."""

    def __init__(
        self, encoder: Encoder, heads: Heads, progress: Progress, mean: Rgb, std: Rgb
    ) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(False)
        self.heads, self.progress, self.mean, self.std = heads, progress, mean, std

    def forward(self, batch: LabelledBatch, draw: Draw) -> Step:
        self.encoder.eval()
        with torch.no_grad():
            features = self.heads.read(self.encoder, normalise(batch.images, self.mean, self.std))
        return heads_step(self.heads(features), batch.labels, draw, self.progress)

    def take_statistics(self, statistics: Mapping[str, Tensor]) -> None:
        self.progress.add(statistics)


def images_to_train_on(recipe: Probing, train: PackedDataset) -> Sequence[int]:
    """Return the training images that are not held out: all where nothing is to be chosen."""
    if not recipe.grid_rates:
        return range(len(train))
    return split_held_out(train, recipe.held_out, recipe.seed)[0].tolist()


def fit_on_images(
    recipe: Probing, encoder: Encoder, heads: Heads, train: PackedDataset, context: RunContext
) -> Tensor:
    """Train heads in place on augmented images; return `Progress.accuracies`."""
    transform = train_crop_transform(encoder.vit.image_size, recipe.crop_scale_min, recipe.flip)
    loader = training_loader(
        train, transform, collate_labelled, recipe, context.resources,
        subset=images_to_train_on(recipe, train),
    )  # fmt: skip
    progress = Progress(len(heads.names), loader.total_steps)
    probe = ImageProbe(encoder, heads, progress, train.manifest.mean, train.manifest.std)
    fit(probe, loader, recipe, context, param_groups=heads.groups(recipe))
    return progress.accuracies


def fit_on_features(
    recipe: Probing,
    heads: Heads,
    train: PackedDataset,
    rows: FeatureBatch,
    context: RunContext,
    columns: Sequence[int] | None = None,
) -> Tensor:
    """Train heads in place on features computed once; return `Progress.accuracies`.

    Args:
        recipe: Without augmentation.
        heads: On any device.
        train: The training split.
        rows: What is known of all its images.
        context: Checkpoints, journal, resources.
        columns: See `FeatureLoader`.
    """
    plan = StepPlan(
        images_to_train_on(recipe, train),
        seed=recipe.seed,
        batch_size=recipe.batch_size,
        epochs=recipe.epochs,
        micro_batch_size=context.resources.micro_batch_size,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
    )
    loader = FeatureLoader(rows, plan, columns)
    progress = Progress(len(heads.names), loader.total_steps)
    probe = FeatureProbe(heads, progress)
    fit(probe, loader, recipe, context, param_groups=heads.groups(recipe))
    return progress.accuracies
