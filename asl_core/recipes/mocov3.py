"""MoCo v3 (Chen et al., 2021): contrast of two views, the keys of one being a teacher's.

Defaults are those of the released command for ViT-B (official `CONFIG.md`), and of the launch
script (`main_moco.py`) where the command is silent.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from asl_core.recipes.optimisation import require_at_least, require_positive, require_share
from asl_core.recipes.pretraining import Pretraining
from asl_core.recipes.views import BYOL_1, BYOL_2, Colour, View, ViewPlan


@dataclass(frozen=True, kw_only=True)
class MocoV3Recipe(Pretraining):
    """MoCo v3; weight decay reaches everything, biases and norms included."""

    couples_images: ClassVar[bool] = True

    method: Literal["mocov3"] = "mocov3"
    epochs: int = 300
    """Of all ViTs in `CONFIG.md`."""
    batch_size: int = 4096
    """`main_moco.py`; `CONFIG.md` gives its models with it."""
    blr: float = 1.5e-4
    """Learning rate per 256 images, `CONFIG.md`: 2.4e-3 at 4096."""
    weight_decay: float = 0.1
    """`CONFIG.md`."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Those of torch's AdamW, which `main_moco.py` leaves as they are."""
    warmup_epochs: float = 40
    """`CONFIG.md`."""
    temperature: float = 0.2
    """`CONFIG.md`."""
    teacher_momentum: float = 0.99
    """At the beginning, `main_moco.py`; rises to 1 along half a cosine, `CONFIG.md`."""
    projector_hidden: int = 4096
    """Width of the hidden layers of projector and predictor, `main_moco.py`."""
    projector_dim: int = 256
    """Of queries and keys, `main_moco.py`."""
    train_patch_embed: bool = False
    """The released command leaves the patch embedding as it was drawn: training is more stable."""
    crop_scale_min: float = 0.08
    """`main_moco.py`."""
    blur: bool = True
    """Whether views may be blurred; no for images of 32 pixels."""

    def __post_init__(self) -> None:
        require_positive(self, "temperature")
        require_at_least(self, 1, "projector_hidden", "projector_dim")
        require_share("crop_scale_min", self.crop_scale_min)
        if not 0 <= self.teacher_momentum <= 1:
            raise ValueError(f"teacher_momentum must be in [0, 1], got {self.teacher_momentum}")
        super().__post_init__()

    def view_plan(self) -> ViewPlan:
        """Return two crops in BYOL's colours, resized as torchvision does by default."""
        return ViewPlan(views=(self._view(BYOL_1), self._view(BYOL_2)))

    def _view(self, colour: Colour) -> View:
        return View(
            size=self.model.image_size,
            scale=(self.crop_scale_min, 1.0),
            flip=self.flip,
            interpolation="bilinear",
            colour=colour if self.blur else replace(colour, blur=0.0),
        )
