"""What DINO and iBOT share: a teacher over prototypes, many crops, a schedule for everything."""

from dataclasses import dataclass
from typing import Literal

from asl_core.recipes.optimisation import require_at_least, require_positive, require_rates
from asl_core.recipes.pretraining import Pretraining
from asl_core.recipes.views import BYOL_1, BYOL_2, Colour, Range, View

LOCAL = Colour(jitter=(0.4, 0.4, 0.2, 0.1), grey=0.2, blur=0.5)


@dataclass(frozen=True, kw_only=True)
class DistillationPretraining(Pretraining):
    """Defaults of DINO's launch script, which are iBOT's too."""

    epochs: int = 100
    batch_size: int = 1024
    blr: float = 5e-4
    """Learning rate per 256 images."""
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.04
    weight_decay_end: float | None = 0.4
    warmup_epochs: float = 10
    min_lr: float = 1e-6
    schedule: Literal["cosine", "linear", "step", "dino"] = "dino"
    clip_grad: float | None = 3.0
    clip_mode: Literal["global", "per_tensor"] = "per_tensor"
    out_dim: int = 65536
    """Prototypes."""
    head_hidden_dim: int = 2048
    head_bottleneck_dim: int = 256
    norm_last_layer: bool = True
    """Prototypes of length 1; no: lengths are learnt."""
    teacher_momentum: float = 0.996
    """At the beginning; rises to 1 along half a cosine."""
    student_temp: float = 0.1
    teacher_temp: float = 0.04
    warmup_teacher_temp: float = 0.04
    warmup_teacher_temp_epochs: int = 0
    """Epochs over which the teacher's temperature rises from the first to the second."""
    center_momentum: float = 0.9
    freeze_last_layer: int = 1
    """Epochs during which the prototypes keep their initial values."""
    drop_path: float = 0.1
    """Of the student."""
    global_scale: Range = (0.4, 1.0)
    local_crops: int = 8
    local_size: int | None = None
    """Pixels; absent: 96/224 of the image's side, down to whole patches."""
    local_scale: Range = (0.05, 0.4)
    blur: bool = True
    """Whether views may be blurred; no for images of 32 pixels."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "out_dim", "head_hidden_dim", "head_bottleneck_dim", "local_size")
        require_at_least(self, 0, "warmup_teacher_temp_epochs", "freeze_last_layer", "local_crops")
        require_positive(self, "student_temp", "teacher_temp", "warmup_teacher_temp")
        require_rates(self, "drop_path")
        for name in ("global_scale", "local_scale"):
            low, high = getattr(self, name)
            if not 0 < low <= high <= 1:
                raise ValueError(
                    f"{name} must be [low, high], 0 < low <= high <= 1, got {[low, high]}"
                )
        for name in ("teacher_momentum", "center_momentum"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        patch = self.model.patch_size
        if self.local_crops and (self.local_side < patch or self.local_side % patch):
            raise ValueError(
                f"local_size {self.local_side} must be a multiple of patch_size {patch}; a crop "
                "has one patch at least"
            )
        super().__post_init__()

    @property
    def local_side(self) -> int:
        """Side of a local crop in pixels."""
        patch = self.model.patch_size
        own = int(self.model.image_size * 96 / 224) // patch * patch
        return own if self.local_size is None else self.local_size

    def views(self) -> tuple[View, ...]:
        """Return two global crops and the local ones, in DINO's colours."""
        size = self.model.image_size
        colours = [c if self.blur else _without_blur(c) for c in (BYOL_1, BYOL_2, LOCAL)]
        first, second = (
            View(size=size, scale=self.global_scale, flip=self.flip, colour=colour)
            for colour in colours[:2]
        )
        local = View(
            size=self.local_side, scale=self.local_scale, flip=self.flip, colour=colours[2]
        )
        return first, second, *([local] * self.local_crops)

    def temperature_at(self, epoch: int) -> float:
        """Return the teacher's temperature in an epoch."""
        low, high, over = (
            self.warmup_teacher_temp, self.teacher_temp, self.warmup_teacher_temp_epochs,
        )  # fmt: skip
        if epoch >= over:
            return high
        return low + (high - low) * epoch / max(over - 1, 1)


def _without_blur(colour: Colour) -> Colour:
    return Colour(
        jitter=colour.jitter, jitter_probability=colour.jitter_probability, grey=colour.grey,
        solarise=colour.solarise,
    )  # fmt: skip
