"""Pre-training: a method, a dataset and the loop."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from asl_core import distributed
from asl_core.data.loaders import TrainingLoader
from asl_core.data.shards import PackedDataset
from asl_core.data.views import (
    collate_labelled,
    collate_views,
    evaluation_transform,
    pretrain_transform,
)
from asl_core.engine.loop import RunContext, fit
from asl_core.held_out import snapshot_steps, write_held_out
from asl_core.methods import METHODS
from asl_core.protocol import Draw, Views
from asl_core.randomness import derive_seed, seeded_globals
from asl_core.recipes.asl import AslRecipe
from asl_core.recipes.mae import MaeRecipe


def build_method(recipe: MaeRecipe | AslRecipe, dataset: PackedDataset) -> Any:
    """Build a method with weights that depend on the recipe's seed alone."""
    with seeded_globals(derive_seed(recipe.seed, "init")):
        return METHODS[recipe.method](recipe, dataset.manifest.mean, dataset.manifest.std)


def pretrain(
    recipe: MaeRecipe | AslRecipe,
    dataset_folder: Path,
    context: RunContext,
    *,
    held_out: Path | None = None,
) -> Any:
    """Pre-train on the training split and return the method.

    Args:
        recipe: Method, sizes, rates.
        dataset_folder: The packed dataset.
        context: What surrounds the run.
        held_out: Folder for predictions of test images, at the recipe's snapshots and at the end;
            files of an attempt that was killed stay valid. None: they are not made.

    Raises:
        InputError: The dataset is missing, or smaller than one batch.
    """
    dataset = PackedDataset(dataset_folder, "train")
    method = build_method(recipe, dataset)
    loader = TrainingLoader(
        dataset,
        pretrain_transform(recipe.model.image_size, recipe.crop_scale_min, recipe.flip),
        collate_views,
        seed=recipe.seed,
        batch_size=recipe.batch_size,
        epochs=recipe.epochs,
        micro_batch_size=context.resources.micro_batch_size,
        num_workers=context.resources.num_workers,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
    )
    at_steps: dict[int, Callable[[], None]] = {}
    if held_out is not None:
        for step in snapshot_steps(loader.total_steps, recipe.snapshots):
            at_steps[step] = partial(
                write_held_out, method, dataset_folder, recipe.held_out_images, held_out, step
            )
    fit(method, loader, recipe, context, at_steps=at_steps)
    return method


@torch.no_grad()
def picture_reconstructions(
    method: Any, dataset_folder: Path, count: int = 8
) -> dict[str, torch.Tensor]:
    """Return reconstructions of the first test images under a fixed mask, by name."""
    dataset = PackedDataset(dataset_folder, "test")
    transform = evaluation_transform(method.recipe.model.image_size)
    count = min(count, len(dataset))
    images = collate_labelled([transform(dataset[i]) for i in range(count)]).images
    method.eval().cpu()
    return method.reconstructions(Views((images,), torch.arange(count)), Draw(seed=0, step=0))
