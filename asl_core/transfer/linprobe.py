"""Linear probing by MAE's protocol: frozen encoder, BatchNorm without affine, a Linear, LARS."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asl_core import distributed
from asl_core.data.sampler import StepPlan
from asl_core.data.shards import PackedDataset
from asl_core.data.views import LabelledBatch, collate_labelled, normalise, train_crop_transform
from asl_core.engine.context import RunContext
from asl_core.engine.forward_batch import refuse_single_images
from asl_core.engine.loading import training_loader
from asl_core.engine.loop import fit
from asl_core.engine.optimizer import lars_groups, no_decay_groups
from asl_core.modules.encoder import Encoder, load_encoder
from asl_core.precision import full_precision
from asl_core.protocol import Draw, Step
from asl_core.randomness import derive_seed, seeded_globals
from asl_core.recipes.normalisation import Rgb
from asl_core.recipes.optimisation import Resources
from asl_core.recipes.transfer import LinearProbe
from asl_core.transfer.classification import Predictions, gather_predictions
from asl_core.transfer.features import (
    FeatureBatch,
    extract_features,
    frozen_features,
    labelled_dataset,
)


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
        with full_precision(features.device):
            return self.linear(self.norm(features.float()))


class ProbeHeads(nn.ModuleDict):
    """A `ProbeHead` for each pooling, in the recipe's order; each learns as if it were alone.

    Shape:
        - features: (B, K, D). Output: K tensors (B, C), by pooling.
    """

    def __init__(self, recipe: LinearProbe, width: int, num_classes: int) -> None:
        heads = {}
        for pooling in recipe.poolings:
            with seeded_globals(derive_seed(recipe.seed, "init")):
                heads[pooling] = ProbeHead(width, num_classes)
        super().__init__(heads)

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        heads = zip(self.items(), features.unbind(1), strict=True)
        # contiguous, as one alone is: strides decide in which order is summed
        return {pooling: head(pooled.contiguous()) for (pooling, head), pooled in heads}


class FeatureProbe(nn.Module):
    """Probe on features that were computed before."""

    def __init__(self, heads: ProbeHeads) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, batch: FeatureBatch, draw: Draw) -> Step:
        return _step(self.heads(batch.features), batch.labels)


class ImageProbe(nn.Module):
    """Probe on augmented images, through the frozen encoder."""

    def __init__(
        self, encoder: Encoder, heads: ProbeHeads, poolings: tuple[str, ...], mean: Rgb, std: Rgb
    ) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(False)
        self.heads, self.poolings, self.mean, self.std = heads, poolings, mean, std

    def forward(self, batch: LabelledBatch, draw: Draw) -> Step:
        self.encoder.eval()
        with torch.no_grad():
            images = normalise(batch.images, self.mean, self.std)
            features = frozen_features(self.encoder, images, self.poolings)
        return _step(self.heads(features), batch.labels)


@dataclass(frozen=True)
class FeatureLoader:
    """Micro-batches of features that are in memory, in the order of a `TrainingLoader`.

    Attributes:
        rows: Features of the whole training split, row i that of sample i.
        plan: Which samples when.
    """

    rows: FeatureBatch
    plan: StepPlan

    @property
    def steps_per_epoch(self) -> int:
        return self.plan.steps_per_epoch

    @property
    def total_steps(self) -> int:
        return self.plan.total_steps

    def iterate(self, start_step: int) -> Iterator[list[FeatureBatch]]:
        micro_batches = self.plan.micro_batches(start_step)
        for _ in range(start_step, self.total_steps):
            draws = islice(micro_batches, self.plan.micro_batches_per_step)
            yield [self._rows_of([index for _, index in part]) for part in draws]

    def _rows_of(self, indices: list[int]) -> FeatureBatch:
        # one read for the batch: sample by sample takes longer than the probe's whole step
        return FeatureBatch(*(tensor[indices] for tensor in self.rows))


def linprobe(
    recipe: LinearProbe, encoder_folder: Path, dataset_folder: Path, context: RunContext
) -> tuple[ProbeHeads, dict[str, Predictions]]:
    """Train a probe and predict the test split, by pooling, the recipe's `pooling` first.

    Raises:
        InputError: No encoder, no labels, a batch larger than the training split, or a forward
            pass of one image.
    """
    micro_batch_size = context.resources.micro_batch_size
    refuse_single_images("the linear probe", recipe.batch_size, micro_batch_size)
    encoder = load_encoder(encoder_folder, image_size=recipe.image_size)
    train = labelled_dataset(dataset_folder, "train")
    labelled_dataset(dataset_folder, "test")  # refused now and not after training
    heads = ProbeHeads(recipe, encoder.vit.embed_dim, train.num_classes)
    if recipe.augment:
        _fit_on_images(recipe, encoder, heads, train, context)
    else:
        _fit_on_features(recipe, encoder, heads, train, context)
    return heads, evaluate_probe(heads, encoder, recipe, dataset_folder, context.resources)


@torch.no_grad()
def evaluate_probe(
    heads: ProbeHeads,
    encoder: Encoder,
    recipe: LinearProbe,
    dataset_folder: Path,
    resources: Resources,
) -> dict[str, Predictions]:
    """Predict the test split, by pooling."""
    features = extract_features(
        encoder,
        labelled_dataset(dataset_folder, "test"),
        poolings=recipe.poolings,
        precision=recipe.precision,
        resources=resources,
    )
    logits = heads.cpu().eval()(features.features)
    return {
        pooling: gather_predictions(features.indices, features.labels, scores)
        for pooling, scores in logits.items()
    }


def _step(logits: dict[str, Tensor], labels: Tensor) -> Step:
    losses = {pooling: F.cross_entropy(scores, labels) for pooling, scores in logits.items()}
    terms = {f"loss_{pooling}": loss for pooling, loss in losses.items()}
    return Step(torch.stack([*losses.values()]).sum(), terms if len(terms) > 1 else {})


def _fit_on_images(
    recipe: LinearProbe,
    encoder: Encoder,
    heads: ProbeHeads,
    train: PackedDataset,
    context: RunContext,
) -> None:
    transform = train_crop_transform(encoder.vit.image_size, recipe.crop_scale_min, recipe.flip)
    loader = training_loader(train, transform, collate_labelled, recipe, context.resources)
    mean, std = train.manifest.mean, train.manifest.std
    probe = ImageProbe(encoder, heads, recipe.poolings, mean, std)
    fit(probe, loader, recipe, context, param_groups=_groups(probe, recipe))


def _fit_on_features(
    recipe: LinearProbe,
    encoder: Encoder,
    heads: ProbeHeads,
    train: PackedDataset,
    context: RunContext,
) -> None:
    """Train on features computed once: without augmentation they never change."""
    share = extract_features(
        encoder,
        train,
        poolings=recipe.poolings,
        precision=recipe.precision,
        resources=context.resources,
    )
    shares = distributed.gather_objects(share)
    rows = FeatureBatch(*(torch.cat(parts) for parts in zip(*shares, strict=True)))
    order = torch.argsort(rows.indices)
    plan = StepPlan(
        range(len(order)),
        seed=recipe.seed,
        batch_size=recipe.batch_size,
        epochs=recipe.epochs,
        micro_batch_size=context.resources.micro_batch_size,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
    )
    loader = FeatureLoader(FeatureBatch(*(tensor[order] for tensor in rows)), plan)
    probe = FeatureProbe(heads)
    fit(probe, loader, recipe, context, param_groups=_groups(probe, recipe))


def _groups(probe: nn.Module, recipe: LinearProbe) -> list[dict[str, Any]]:
    return lars_groups(probe) if recipe.optimizer == "lars" else no_decay_groups(probe, recipe)
