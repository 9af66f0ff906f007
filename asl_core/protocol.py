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
    """A batch of unlabelled images.

    Attributes:
        views: One tensor per view, uint8, (B, C, H, W).
        indices: Identity of each sample in its dataset, int64, (B,).
    """

    views: tuple[Tensor, ...]
    indices: Tensor


@dataclass(frozen=True)
class Step:
    """Result of one forward pass.

    Attributes:
        loss: Scalar float32 to be minimised, the mean over the samples of the batch.
        terms: Scalars to be logged beside it, by name.
    """

    loss: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)


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

    def reconstructions(self, views: Views, draw: Draw) -> dict[str, Tensor]:
        """Return pictures by name, float in [0, 1], (B, C, H, W): input, masked, predictions."""
        ...


@runtime_checkable
class Grouped(Protocol):
    """A method whose parameters are not grouped by the usual rule of weight decay."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the optimiser's groups, with their weight decay."""
        ...
