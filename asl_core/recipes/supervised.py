"""The supervised baseline: DeiT (Touvron et al., 2021), without distillation.

Two things of its launch script are left out: repeated augmentation, with which an epoch would not
be one pass over the data, and the average of the weights, which its evaluation does not read.
"""

from dataclasses import dataclass
from typing import Literal

from asl_core.recipes.mixing import mixes, require_mixing
from asl_core.recipes.optimisation import require_rates, require_share
from asl_core.recipes.pretraining import Pretraining
from asl_core.recipes.views import View, ViewPlan


@dataclass(frozen=True, kw_only=True)
class SupervisedRecipe(Pretraining):
    """Training with the classes of the images."""

    method: Literal["supervised"] = "supervised"
    epochs: int = 300
    batch_size: int = 1024
    blr: float = 2.5e-4
    """Learning rate per 256 images: 5e-4 per 512."""
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_epochs: float = 5
    min_lr: float = 1e-5
    drop_path: float = 0.1
    label_smoothing: float = 0.1
    mixup: float = 0.8
    cutmix: float = 1.0
    """One strength for all images of a step, where the official code draws one in each process:
    the result would depend on how many there are. Each image's own distribution is the same."""
    rand_augment: str | None = "rand-m9-mstd0.5-inc1"
    random_erasing: float = 0.25
    crop_scale_min: float = 0.08
    pooling: Literal["cls", "mean"] = "cls"
    """What is classified, normalised: [cls], or the mean of the patches (as in fine-tuning)."""

    def __post_init__(self) -> None:
        require_share("crop_scale_min", self.crop_scale_min)
        require_rates(self, "drop_path")
        require_mixing(self)
        super().__post_init__()

    @property
    def forward_multiple(self) -> int:
        """Pairs, where images are mixed."""
        return 2 if mixes(self) else 1

    def view_plan(self) -> ViewPlan:
        """Return one crop in strange colours, and its class."""
        view = View(
            size=self.model.image_size, scale=(self.crop_scale_min, 1.0), flip=self.flip,
            rand_augment=self.rand_augment, random_erasing=self.random_erasing,
        )  # fmt: skip
        return ViewPlan(views=(view,), labels=True)
