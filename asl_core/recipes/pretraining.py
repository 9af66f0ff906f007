"""What pre-training methods share."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from asl_core.recipes.initialise import Initialise
from asl_core.recipes.models import MODELS, PLAIN, EncoderParts, Vit
from asl_core.recipes.optimisation import Optimisation, require_at_least, require_share
from asl_core.recipes.views import View, ViewPlan


@dataclass(frozen=True, kw_only=True)
class Pretraining(Optimisation, ABC):
    """A method on a dataset, optimised as MAE is (PRETRAIN.md of the official code, ViT-B)."""

    couples_images: ClassVar[bool] = False
    """Whether an image's loss depends on the others of its step."""

    method: str
    dataset: str
    """Name of an entry under `datasets`."""
    model: Vit = field(default_factory=lambda: MODELS["vit-b"])
    epochs: int = 800
    batch_size: int = 4096
    blr: float = 1.5e-4
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.05
    warmup_epochs: float = 40
    flip: bool = True
    images_on: Literal["disk", "device"] = "disk"
    """Where the training images are while it trains: on disk, read, cropped and flipped by the
    loader's processes; or, for a small dataset of one image size, all in the memory of the device,
    cropped and flipped there. The draws differ, their distribution does not."""
    snapshots: int = 0
    """Number of steps, evenly spaced to the end, at which the encoder is watched, and predictions
    of test images are kept for the analysis of the contrastive view over training, where the
    method makes any. 0: predictions only at the end."""
    watch: bool = True
    """Whether the encoder is measured at the snapshots and before the first step, see
    `asl_core.analysis.watching`. Changes no weight."""
    initialise: Initialise | None = None
    """Weights to begin with; absent: drawn."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, 0, "snapshots")
        if self.couples_images and self.batch_size < 2:
            raise ValueError("batch_size must be at least 2: an image is compared with others")
        plan = self.view_plan()  # refuses views that cannot be made
        if self.images_on == "device":
            plan.require_crop_and_flip(self.method)

    @property
    def encoder_parts(self) -> EncoderParts:
        """What the method's encoder has otherwise than a plain ViT."""
        return PLAIN

    @property
    def forward_multiple(self) -> int:
        """What divides the number of images that go through the network together."""
        return 1

    def head(self, num_classes: int | None) -> dict[str, int]:
        """Return what the method is built with beside its recipe: classes, if it wants labels."""
        if num_classes is None or not self.view_plan().labels:
            return {}
        return {"num_classes": num_classes}

    @abstractmethod
    def view_plan(self) -> ViewPlan:
        """Return what the method sees of each image."""


@dataclass(frozen=True, kw_only=True)
class MaskedPretraining(Pretraining):
    """What the masked-image methods share."""

    mask_ratio: float = 0.75
    """Share of patches removed from the encoder's input."""
    norm_pix: bool = True
    """Targets normalised per patch."""
    crop_scale_min: float = 0.2
    """RandomResizedCrop takes an area between this share and 1."""
    held_out_images: int = 64
    """How many test images these are. The removed patches of each take 226 kB at ViT-B, twice
    that with their targets, thrice with ASL's second branch; for every snapshot."""

    def __post_init__(self) -> None:
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"mask_ratio must be in (0, 1), got {self.mask_ratio}")
        require_at_least(self, 1, "held_out_images")
        require_share("crop_scale_min", self.crop_scale_min)
        if not 0 < self.num_visible < self.model.num_patches:
            raise ValueError(
                f"mask_ratio {self.mask_ratio} leaves {self.num_visible} of "
                f"{self.model.num_patches} patches; at least one must be removed, and one stay"
            )
        super().__post_init__()

    @property
    def num_visible(self) -> int:
        """Patches that the encoder sees."""
        return int(self.model.num_patches * (1 - self.mask_ratio))

    def view_plan(self) -> ViewPlan:
        """Return one crop, as MAE sees an image."""
        scale = (self.crop_scale_min, 1.0)
        return ViewPlan(views=(View(size=self.model.image_size, scale=scale, flip=self.flip),))
