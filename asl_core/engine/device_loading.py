"""The loader of a training run whose images are on the device that computes."""

from asl_core import distributed
from asl_core.data.device_images import load_on_device
from asl_core.data.device_loader import DeviceLoader
from asl_core.data.sampler import StepPlan
from asl_core.data.shards import PackedDataset
from asl_core.engine.devices import pick_device
from asl_core.recipes.optimisation import Optimisation, Resources
from asl_core.recipes.views import ViewPlan


def device_loader(
    dataset: PackedDataset, view_plan: ViewPlan, recipe: Optimisation, resources: Resources
) -> DeviceLoader:
    """Load the images on this process's device and return its loader of a run.

    Raises:
        InputError: They differ in size or are too many; or the batch does not fit them.
    """
    plan = StepPlan(
        indices=range(len(dataset)),
        seed=recipe.seed,
        batch_size=recipe.batch_size,
        epochs=recipe.epochs,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        micro_batch_size=resources.micro_batch_size,
    )
    return DeviceLoader(load_on_device(dataset, pick_device(resources)), plan, view_plan)
