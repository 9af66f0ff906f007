"""Pre-training: a method, a dataset and the loop."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from asl_core import distributed
from asl_core.data.loaders import TrainingLoader
from asl_core.data.shards import PackedDataset
from asl_core.data.views import collate_views, pretrain_transform
from asl_core.engine.loop import RunContext, fit
from asl_core.held_out import snapshot_steps
from asl_core.methods import METHODS
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
    at_snapshot: Callable[[Any, int], None] | None = None,
) -> Any:
    """Pre-train on the training split and return the method.

    Args:
        recipe: Method, sizes, rates.
        dataset_folder: The packed dataset.
        context: What surrounds the run.
        at_snapshot: Called by the first process with the method and the step, at the recipe's
            snapshots and at the end; those of an attempt that was killed are not repeated.

    Raises:
        InputError: The dataset is missing, or smaller than one batch.
    """
    dataset = PackedDataset(dataset_folder, "train")
    method = build_method(recipe, dataset)
    loader = TrainingLoader(
        dataset,
        pretrain_transform(
            recipe.model.image_size, recipe.crop_scale_min, recipe.flip, method.num_views
        ),
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
    if at_snapshot is not None:
        for step in snapshot_steps(loader.total_steps, recipe.snapshots):
            at_steps[step] = partial(at_snapshot, method, step)
    fit(method, loader, recipe, context, at_steps=at_steps)
    return method
