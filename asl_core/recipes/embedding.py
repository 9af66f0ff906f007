"""One vector for each image, as a stage writes it."""

from dataclasses import dataclass
from typing import Literal

from asl_core.recipes.optimisation import require_at_least

Pooling = Literal["cls", "mean", "cls+mean"]
POOLINGS: tuple[Pooling, ...] = ("cls", "mean", "cls+mean")
LAST = -1
"""The last block."""


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """Embeddings of a dataset's images by a frozen encoder, as a file."""

    dataset: str
    splits: tuple[Literal["train", "test"], ...] = ("test",)
    """Whose images, in this order."""
    pooling: Pooling = "cls"
    """cls: [cls] after the final norm. mean: of the patches, then a norm without parameters. Both
    as the nearest neighbours and the linear probe read them; cls+mean: one behind the other."""
    layer: int = LAST
    """Which block is read, counted from the last, -1."""
    image_size: int | None = None
    """Side of the input; absent: that of the pre-training."""
    precision: Literal["bf16", "fp32"] = "fp32"
    """Of the encoder."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "image_size")
        require_layer(self.layer)
        if not self.splits or len({*self.splits}) < len(self.splits):
            raise ValueError(f"splits needs at least one, none twice, got {[*self.splits]}")


def require_layer(layer: int) -> None:
    """Refuse what counts from no end.

    Raises:
        ValueError: It is not below 0.
    """
    if layer > LAST:
        raise ValueError(f"layer counts from the last block, -1, got {layer}; use -1, -2, ...")
