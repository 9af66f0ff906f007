"""The transfer protocols: linear probe, fine-tune, detection, segmentation."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from asl_core.recipes.mixing import mixes, require_mixing
from asl_core.recipes.optimisation import (
    Optimisation,
    require_at_least,
    require_positive,
    require_rates,
    require_share,
)
from asl_core.recipes.probing import Probing


@dataclass(frozen=True, kw_only=True)
class LinearProbe(Probing):
    """MAE's linear probe: BatchNorm without affine, a Linear, LARS (official main_linprobe.py)."""

    pooling: Literal["cls", "mean"] = "cls"
    """cls after the encoder's final norm, or the mean of the patch tokens before it, normalised."""
    both_poolings: bool = False
    """Probe the other as well, at the same time; tables show `pooling`, the report both."""
    grid_poolings: tuple[Literal["cls", "mean", "both"], ...] = ("cls", "mean", "both")
    """Beside `grid_rates`: what is probed, both being [cls] and mean in one vector."""
    grid_blocks: tuple[Literal[1, 4], ...] = (1, 4)
    """Beside `grid_rates`: features of how many last blocks, in one vector."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.refuse_common_norm(2 if self.both_poolings else 1, "both_poolings")
        for name in ("grid_poolings", "grid_blocks"):
            values = getattr(self, name)
            if not values or len({*values}) < len(values):
                raise ValueError(f"{name} needs at least one value, none twice, got {[*values]}")
        if not self.grid_rates:
            return
        if self.both_poolings or self.pooling != "cls":
            raise ValueError(
                "pooling and both_poolings have no effect beside grid_rates; use grid_poolings"
            )
        heads = len(self.grid_rates) * len(self.grid_poolings) * len(self.grid_blocks)
        self.refuse_common_norm(heads, "grid_rates")

    @property
    def poolings(self) -> tuple[str, ...]:
        """What is probed, `pooling` first."""
        if self.grid_rates:
            return self.grid_poolings
        other = "mean" if self.pooling == "cls" else "cls"
        return (self.pooling, other) if self.both_poolings else (self.pooling,)

    @property
    def blocks(self) -> tuple[int, ...]:
        """Features of how many last blocks are probed."""
        return self.grid_blocks if self.grid_rates else (1,)


@dataclass(frozen=True, kw_only=True)
class FineTune(Optimisation):
    """MAE's fine-tuning of ViT-B (official main_finetune.py)."""

    dataset: str
    epochs: int = 100
    batch_size: int = 1024
    blr: float = 5e-4
    min_lr: float = 1e-6
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.05
    warmup_epochs: float = 5
    layer_decay: float | None = 0.65
    drop_path: float = 0.1
    mixup: float = 0.8
    cutmix: float = 1.0
    label_smoothing: float = 0.1
    rand_augment: str | None = "rand-m9-mstd0.5-inc1"
    """timm's RandAugment string; absent: none."""
    random_erasing: float = 0.25
    crop_scale_min: float = 0.08
    """RandomResizedCrop takes an area between this share and 1; timm's default."""
    flip: bool = True
    image_size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_rates(self, "drop_path")
        require_share("crop_scale_min", self.crop_scale_min)
        require_mixing(self)
        require_at_least(self, 1, "image_size")

    @property
    def forward_multiple(self) -> int:
        """What divides the number of images that go through the network together."""
        return 2 if mixes(self) else 1


@dataclass(frozen=True, kw_only=True)
class Detection(Optimisation):
    """Mask R-CNN on the plain ViT.

    The protocol of "Benchmarking Detection Transfer Learning with Vision Transformers", to which
    the paper's MAE row belongs; see docs/reference.md.
    """

    dataset: str
    epochs: int = 100
    batch_size: int = 64
    lr: float | None = 8e-5
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.1
    warmup_epochs: float = 0.25
    drop_path: float = 0.1
    drop_path_per_window: bool = False
    """Drop a windowed block for each window by itself, as the public code does, which calls blocks
    on windows; else for the whole image."""
    image_size: int = 1024
    """Longest side; inputs are padded to this square."""
    scale_range: tuple[float, float] = (0.1, 2.0)
    """Large-scale jitter: the longest side becomes image_size times a number of this range."""
    flip: bool = True
    """Mirror every other image; off where mirrored objects are other objects, as digits are."""
    window_size: int = 16
    """Side in tokens of the attention windows of the blocks that are not global."""
    pyramid_channels: int = 256
    anchor_sizes: tuple[int, ...] = (32, 64, 128, 256, 512)
    """One per pyramid level, strides 4 to 64."""
    rpn_batch: int = 256
    """Anchors per image in the RPN's loss."""
    roi_batch: int = 512
    """Proposals per image in the heads' losses."""
    proposals: int = 1000
    """Proposals kept after NMS."""
    box_head_dim: int = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.anchor_sizes) != 5:
            raise ValueError(
                f"anchor_sizes needs one size for each of 5 levels, got {self.anchor_sizes}"
            )
        if not all(0 < low < high for low, high in pairwise((0.5, *self.anchor_sizes))):
            raise ValueError(f"anchor_sizes must grow, in pixels, got {list(self.anchor_sizes)}")
        require_rates(self, "drop_path")
        _require_range("scale_range", self.scale_range)
        require_at_least(
            self, 1, "image_size", "window_size", "pyramid_channels", "rpn_batch", "roi_batch",
            "proposals", "box_head_dim",
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Segmentation(Optimisation):
    """UPerNet on the plain ViT: MAE's ADE20K setting, as reproduced in mmsegmentation.

    See docs/reference.md.
    """

    dataset: str
    epochs: int = 127
    """160,000 steps at batch 16 on 20,210 images."""
    batch_size: int = 16
    lr: float | None = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.05
    warmup_epochs: float = 1.2
    schedule: Literal["cosine", "linear", "step"] = "linear"
    layer_decay: float | None = 0.65
    drop_path: float = 0.1
    crop_size: int = 512
    scale_range: tuple[float, float] = (0.5, 2.0)
    category_share_max: float = 0.75
    """A crop in which one class has more than this share is drawn again."""
    slide_stride: int = 341
    """Stride of the sliding window at test time."""
    channels: int = 768
    """Width of the UPerNet head."""
    auxiliary_channels: int = 256
    auxiliary_weight: float = 0.4
    dropout: float = 0.1
    classifier_std: float = 0.01
    """Deviation of the classifiers' initial weights; mmsegmentation's. A head a tenth as wide
    starts with logits so small that rare classes take long to win: give it more."""
    flip: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_batch(self)
        require_rates(self, "drop_path", "dropout")
        require_share("category_share_max", self.category_share_max)
        require_at_least(self, 0, "auxiliary_weight")
        require_at_least(self, 1, "crop_size", "slide_stride", "channels", "auxiliary_channels")
        require_positive(self, "classifier_std")
        _require_range("scale_range", self.scale_range)
        if self.slide_stride > self.crop_size:
            raise ValueError(
                f"slide_stride {self.slide_stride} exceeds crop_size {self.crop_size}: pixels "
                "between two windows would have no class; use a smaller stride"
            )


def _require_batch(recipe: Optimisation) -> None:
    """Raise a ValueError where BatchNorm would see one image alone in every step."""
    if recipe.batch_size < 2:
        raise ValueError("batch_size must be at least 2: BatchNorm needs two images, got 1")


def _require_range(name: str, limits: tuple[float, float]) -> None:
    """Raise a ValueError that names the field unless 0 < low <= high."""
    if not 0 < limits[0] <= limits[1]:
        raise ValueError(f"{name} must be [low, high], 0 < low <= high, got {list(limits)}")
