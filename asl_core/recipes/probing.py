"""What the probes share that are trained by gradient: one published rate, or a grid of them."""

from dataclasses import dataclass
from typing import Literal

from asl_core.recipes.optimisation import (
    Optimisation,
    require_at_least,
    require_share,
)


@dataclass(frozen=True, kw_only=True)
class Probing(Optimisation):
    """How a probe is trained on a frozen encoder.

    Without `grid_rates` it is the published protocol: one head, one rate, all training images.
    With them there is a head for each rate (and whatever else the probe varies), all trained on
    the same batches, each as if it were alone, on the training images that are not held out. Which
    head counts is decided on those held out, of equal ones the first; it is not trained again on
    all of them. DINOv2's linear evaluation has such a grid (its eval/linear.py), does not train
    again either, and chooses on the split that it reports; here the test split is read once.
    """

    dataset: str
    epochs: int = 90
    batch_size: int = 16384
    optimizer: Literal["adamw", "lars"] = "lars"
    blr: float = 0.1
    weight_decay: float = 0.0
    warmup_epochs: float = 10
    augment: bool = True
    """RandomResizedCrop and flip in training; without them the features are computed once."""
    crop_scale_min: float = 0.08
    flip: bool = True
    image_size: int | None = None
    """Side of the input; absent: that of the pre-training."""
    grid_rates: tuple[float, ...] = ()
    """Learning rates as used, like `lr`, one head each; absent: the published one, of lr or blr.
    With LARS, rate times steps is what moves weights: a small set needs larger ones."""
    held_out: float = 0.1
    """Share of each class of the training images that a grid's heads are compared on; the draw
    depends on seed and image alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size < 2:
            raise ValueError("batch_size must be at least 2: BatchNorm needs two images, got 1")
        require_share("crop_scale_min", self.crop_scale_min)
        require_at_least(self, 1, "image_size")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out must be in (0, 1), got {self.held_out}")
        if not self.grid_rates:
            return
        if min(self.grid_rates) <= 0 or list(self.grid_rates) != sorted({*self.grid_rates}):
            raise ValueError(f"grid_rates must be positive and grow, got {list(self.grid_rates)}")
        if self.lr is not None:
            raise ValueError("lr has no effect beside grid_rates; remove it")

    @property
    def rates(self) -> tuple[float, ...]:
        """Learning rates of the heads."""
        return self.grid_rates or (self.peak_lr,)

    def refuse_common_norm(self, heads: int, remedy: str) -> None:
        """Raise a ValueError where gradients of several heads would be clipped by one norm."""
        if heads > 1 and self.clip_grad is not None and self.clip_mode == "global":
            raise ValueError(
                f"clip_grad would clip all probes by their common norm; with {remedy} set "
                "clip_mode per_tensor or leave clip_grad out"
            )
