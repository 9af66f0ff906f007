"""Batches cut, resized and mirrored where the images are: no loader process, no copy, no wait."""

from collections.abc import Iterator
from itertools import islice

from torch import Tensor

from asl_core.data.batched_resize import BoxResizer
from asl_core.data.device_images import DeviceImages
from asl_core.data.random_boxes import draw_boxes
from asl_core.data.sampler import StepPlan
from asl_core.protocol import Views
from asl_core.randomness import derive_seed
from asl_core.recipes.views import ViewPlan


class DeviceLoader:
    """Gives the augmented micro-batches of every optimiser step, as `TrainingLoader` does.

    The order of an epoch is that of `TrainingLoader`; boxes and flips are other draws of the same
    distribution, functions of (seed, epoch, index) by the counter-based generator. An epoch's
    order goes to the device once; a step asks nothing of it.

    Args:
        images: The training split.
        plan: The samples of every step; positions are indices.
        view_plan: One view, see `ViewPlan.require_crop_and_flip`.
    """

    def __init__(self, images: DeviceImages, plan: StepPlan, view_plan: ViewPlan) -> None:
        (self._view,) = view_plan.views
        self._images, self._plan, self._labels = images, plan, view_plan.labels
        self._resize = BoxResizer(images.image_size, self._view.size, images.pixels.device)
        self.steps_per_epoch = plan.steps_per_epoch
        self.total_steps = plan.total_steps

    def iterate(self, start_step: int) -> Iterator[list[Views]]:
        """Yield, for each step from `start_step` to the last, this process's micro-batches."""
        batches = (
            self.augmented(epoch, indices)
            for epoch, indices in self._plan.positions(start_step, self._placed)
        )
        for _ in range(start_step, self.total_steps):
            yield list(islice(batches, self._plan.micro_batches_per_step))

    def augmented(self, epoch: int, indices: Tensor) -> Views:
        """Return images as an epoch sees them; indices (B,), on the device."""
        seed, view = derive_seed(self._plan.seed, "augment", epoch), self._view
        boxes = draw_boxes(seed, indices, self._images.image_size, view.scale, view.flip)
        squares = self._resize(self._images.pixels[indices], boxes)
        labels = self._images.labels[indices] if self._labels else None
        return Views((squares,), indices, labels=labels)

    def _placed(self, order: Tensor) -> Tensor:
        device = self._images.pixels.device
        if device.type == "cpu":
            return order
        return order.pin_memory().to(device, non_blocking=True)
