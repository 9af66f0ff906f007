"""The loader of a training run."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from asl_core import distributed
from asl_core.data.loaders import Readable, TrainingLoader
from asl_core.recipes.optimisation import Optimisation, Resources

Batch = TypeVar("Batch")
Item = TypeVar("Item")
Record = TypeVar("Record")


def training_loader(
    dataset: Readable[Record],
    transform: Callable[[Record], Item],
    collate: Callable[[list[Item]], Batch],
    recipe: Optimisation,
    resources: Resources,
    subset: Sequence[int] | None = None,
) -> TrainingLoader[Batch]:
    """Return this process's loader of a run.

    Args: as for `TrainingLoader`; the recipe and the resources say the rest.
    """
    return TrainingLoader(
        dataset,
        transform,
        collate,
        seed=recipe.seed,
        batch_size=recipe.batch_size,
        epochs=recipe.epochs,
        micro_batch_size=resources.micro_batch_size,
        num_workers=resources.num_workers,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        subset=subset,
    )
