"""What the loop, the stages and the methods know of each other."""

from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import Tensor


@dataclass(frozen=True)
class Draw:
    """Names the random draws of one optimiser step."""

    seed: int
    step: int


@dataclass(frozen=True)
class Views:
    """A batch of images as a method sees them.

    Attributes:
        views: One tensor per view, uint8, (B, C, H, W).
        indices: Identity of each sample in its dataset, int64, (B,).
        boxes: Where the views lie in the image, (B, V, 6), float32, in pixels: top, left, height,
            width of the crop, whether the image was mirrored before (1 or 0), the image's width.
        masks: True where a patch of a masked view is removed, (B, M, N).
        labels: Class of each image, int64, (B,).
    """

    views: tuple[Tensor, ...]
    indices: Tensor
    boxes: Tensor | None = None
    masks: Tensor | None = None
    labels: Tensor | None = None


@dataclass(frozen=True)
class RunLength:
    """How long a run is: what schedules of a method are functions of."""

    steps_per_epoch: int = 1
    total_steps: int = 1

    def epoch(self, step: int) -> int:
        """Return the epoch that the step after `step` steps belongs to, from 0."""
        return step // self.steps_per_epoch


@dataclass(frozen=True)
class Step:
    """Result of one forward pass.

    Attributes:
        loss: Scalar float32 to be minimised, the mean over the samples of the batch.
        terms: Scalars to be logged beside it, by name.
        statistics: Means over the batch that change the method's state after the step.
    """

    loss: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)
    statistics: dict[str, Tensor] = field(default_factory=dict)


class Trainable(Protocol):
    """What the loop trains: an nn.Module whose forward takes a batch and returns a Step."""

    def __call__(self, batch: object, draw: Draw) -> Step: ...

    def after_step(self, step: int) -> None:
        """Change state after the optimiser's step `step` (EMA teachers); most do nothing."""
        ...


class Method(Trainable, Protocol):
    """A pre-training method."""

    def encoder_state(self) -> dict[str, Tensor]:
        """Return the encoder's weights under timm's names: what transfer stages load."""
        ...


@runtime_checkable
class Reconstructing(Protocol):
    """A method that predicts pixels of removed patches; its recipe is a `MaskedPretraining`."""

    def masked(self, batch: Views, draw: Draw) -> tuple[Tensor, Any]:
        """Return the normalised images, (B, 3, H, W), and their `Mask` in this step."""
        ...

    def target(self, images: Tensor, mask: Any) -> Tensor:
        """Return what the removed patches should be predicted as, (B, R, P)."""
        ...

    def predictions(self, images: Tensor, mask: Any) -> dict[str, Tensor]:
        """Return the predictions of the removed patches, (B, R, P), by branch: ori, aug."""
        ...


@runtime_checkable
class Classifying(Protocol):
    """A method that is trained with the classes of the images, and tells them."""

    def logits(self, images: Tensor) -> Tensor:
        """Classify normalised images: (B, 3, H, W) to (B, K)."""
        ...


@runtime_checkable
class Scheduled(Protocol):
    """A method with schedules of its own."""

    def lasts(self, length: RunLength) -> None:
        """Take note of how long the run is, before it begins or goes on."""
        ...


@runtime_checkable
class EditsGradients(Protocol):
    """A method that changes gradients: after they are clipped, before the optimiser's step."""

    def edit_gradients(self, step: int) -> None:
        """Change the gradients of the step after `step` steps."""
        ...


@runtime_checkable
class TakesStatistics(Protocol):
    """A method whose steps have statistics."""

    def take_statistics(self, statistics: dict[str, Tensor]) -> None:
        """Change state by a step's statistics, means over all its images."""
        ...


@runtime_checkable
class Grouped(Protocol):
    """A method whose parameters are not grouped by the usual rule of weight decay."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the optimiser's groups, with their weight decay."""
        ...
