"""What the loop, the stages and the methods know of each other."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, Self, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from asl_core.recipes.models import Vit
from asl_core.recipes.normalisation import Rgb


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
        regions: True inside of each region of the first view, (B, R, S, S).
    """

    views: tuple[Tensor, ...]
    indices: Tensor
    boxes: Tensor | None = None
    masks: Tensor | None = None
    labels: Tensor | None = None
    regions: Tensor | None = None


class Mask(NamedTuple):
    """A random split of the patches of each image into visible and removed.

    Attributes:
        ids_keep: Indices of the visible patches, in the order they are fed, (B, V).
        ids_removed: Indices of the others, (B, R), V + R = N.
    """

    ids_keep: Tensor
    ids_removed: Tensor

    @property
    def removed(self) -> Tensor:
        """True where a patch was removed, in the order of the image, (B, N)."""
        batch, kept = self.ids_keep.shape
        shape = (batch, kept + self.ids_removed.shape[1])
        removed = torch.zeros(shape, dtype=torch.bool, device=self.ids_keep.device)
        return removed.scatter(1, self.ids_removed, True)

    def twice(self) -> "Mask":
        """Return the mask of a batch followed by itself, (2B, ...)."""
        return Mask(self.ids_keep.repeat(2, 1), self.ids_removed.repeat(2, 1))


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


Batch_contra = TypeVar("Batch_contra", contravariant=True)


class Indexed(Protocol):
    """A batch that says which samples of the training split it has: (B,), int64."""

    @property
    def indices(self) -> Tensor: ...


class ModuleLike(Protocol):
    """What is used of an nn.Module where it is known by a protocol: Python has no intersections."""

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def modules(self) -> Iterator[nn.Module]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: Mapping[str, Any], /) -> Any: ...

    def to(self, device: torch.device, /) -> Self: ...

    def eval(self) -> Self: ...


class Tokenizer(ModuleLike, Protocol):
    """What gives every patch of an image a code, one of `num_codes`; it is not trained."""

    @property
    def num_codes(self) -> int: ...

    def codes(self, images: Tensor) -> Tensor:
        """Return the code of each patch, row by row: (B, 3, S, S) uint8 to (B, N) int64.

        S is N's root times the side of a patch in the tokenizer's own pixels.
        """
        ...


class Trainable(ModuleLike, Protocol[Batch_contra]):
    """What the loop trains: an nn.Module whose forward takes a batch and returns a Step."""

    def forward(self, batch: Batch_contra, draw: Draw) -> Step: ...

    def __call__(self, batch: Batch_contra, draw: Draw) -> Step: ...


class SizedRecipe(Protocol):
    """What of a method's recipe everybody may read."""

    @property
    def model(self) -> Vit: ...


class Method(Trainable[Views], Protocol):
    """A pre-training method."""

    @property
    def recipe(self) -> SizedRecipe: ...

    @property
    def mean(self) -> Rgb: ...

    @property
    def std(self) -> Rgb: ...

    @property
    def encoder(self) -> nn.Module:
        """The encoder that is trained, not what follows it."""
        ...

    def encoder_state(self) -> dict[str, Tensor]:
        """Return the encoder's weights under timm's names: what transfer stages load."""
        ...


@runtime_checkable
class Reconstructing(Protocol):
    """A method that predicts pixels of removed patches; its recipe is a `MaskedPretraining`."""

    def masked(self, batch: Views, draw: Draw) -> tuple[Tensor, Mask]:
        """Return the normalised images, (B, 3, H, W), and their mask in this step."""
        ...

    def target(self, images: Tensor, mask: Mask) -> Tensor:
        """Return what the removed patches should be predicted as, (B, R, P)."""
        ...

    def predictions(self, images: Tensor, mask: Mask) -> dict[str, Tensor]:
        """Return the predictions of the removed patches, (B, R, P), by branch: ori, aug."""
        ...


@runtime_checkable
class Aligning(Protocol):
    """A method that aligns what two branches predict; a step of it changes no state.

    The term `loss_mae` of its steps keeps its graph, and what else is in their loss is the
    alignment; without one the loss is that term itself.
    """

    def branch_predictions(self, batch: Views, draw: Draw) -> tuple[Tensor, Tensor]:
        """Return what each branch predicts of the removed patches in a step, both (B, R, P)."""
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

    def set_run_length(self, length: RunLength) -> None:
        """Take note of how long the run is, before it begins or goes on."""
        ...


@runtime_checkable
class PrecedesSteps(Protocol):
    """What changes state of its own before the optimiser: a teacher that lags one step behind."""

    def before_step(self, step: int) -> None:
        """Change state after the gradients of the step after `step` steps are there."""
        ...


@runtime_checkable
class FollowsSteps(Protocol):
    """What changes state of its own after the optimiser: a teacher, a moving average."""

    def after_step(self, step: int) -> None:
        """Change state after the optimiser's step `step`, the first one being 1."""
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


class ReconstructingMethod(Method, Reconstructing, Protocol):
    """A method that is `Reconstructing`."""


class AligningMethod(Method, Aligning, Protocol):
    """A method that is `Aligning`."""


class ClassifyingMethod(Method, Classifying, Protocol):
    """A method that is `Classifying`."""
