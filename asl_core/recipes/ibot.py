"""iBOT (Zhou et al., 2021): DINO, and the same for masked patches.

Prototypes, heads and temperatures are those of the README's recipe, the rest the launch script's
(for a ViT-B: `norm_last_layer`). The arguments of the published ViT-B are neither: they are on a
host of its own. Two global crops and no local ones fit the cost that the ASL paper gives (about six
times MAE's).
"""

from dataclasses import dataclass
from typing import Literal

from asl_core.recipes.distillation import DistillationPretraining
from asl_core.recipes.optimisation import require_at_least, require_positive
from asl_core.recipes.views import BlockMask, Range, View, ViewPlan


@dataclass(frozen=True, kw_only=True)
class IbotRecipe(DistillationPretraining):
    """iBOT."""

    method: Literal["ibot"] = "ibot"
    out_dim: int = 8192
    patch_out_dim: int | None = None
    """Prototypes of patches; absent: as many as of [cls], which shared heads require."""
    shared_head: bool = True
    """Whether patches and [cls] share prototypes in the student; the script's default is no."""
    shared_head_teacher: bool = True
    """The same, in the teacher."""
    teacher_temp: float = 0.07
    warmup_teacher_temp_epochs: int = 30
    teacher_patch_temp: float = 0.07
    warmup_teacher_patch_temp: float = 0.04
    cls_weight: float = 1.0
    patch_weight: float = 1.0
    local_crops: int = 0
    global_scale: Range = (0.14, 1.0)
    mask_ratio_min: float = 0.1
    mask_ratio_max: float = 0.5
    """Half of the views are masked, by a share between these."""
    smallest_block: int | None = None
    """Patches of the smallest rectangle of a mask; absent: a ninth of the view."""

    def __post_init__(self) -> None:
        require_positive(self, "teacher_patch_temp", "warmup_teacher_patch_temp")
        require_at_least(self, 0, "cls_weight", "patch_weight")
        shared = self.shared_head or self.shared_head_teacher
        if shared and self.patch_prototypes != self.out_dim:
            raise ValueError(
                f"patch_out_dim {self.patch_out_dim} must be out_dim {self.out_dim} where patches "
                "share the head of [cls]; remove it"
            )
        if self.shared_head and not self.shared_head_teacher:
            raise ValueError("a teacher follows its student: shared_head asks for its own too")
        low, high, patches = self.mask_ratio_min, self.mask_ratio_max, self.model.num_patches
        if not 0 <= low <= high < 1:
            raise ValueError(
                f"mask_ratio_min {low} and mask_ratio_max {high} must be in 0 <= min <= max < 1"
            )
        require_at_least(self, 1, "smallest_block", "patch_out_dim")
        # a block is smaller than the view on both sides
        if self.model.grid_size < 2 or high * patches < self.block_patches:
            raise ValueError(
                f"mask_ratio_max {high} of {patches} patches leaves no room for a block of "
                f"{self.block_patches}: nothing would be masked; raise it, or lower smallest_block"
            )
        super().__post_init__()

    @property
    def block_patches(self) -> int:
        """Patches of the smallest rectangle of a mask."""
        ninth = max(1, (self.model.grid_size // 3) ** 2)
        return ninth if self.smallest_block is None else self.smallest_block

    @property
    def patch_prototypes(self) -> int:
        """Prototypes of patches."""
        return self.out_dim if self.patch_out_dim is None else self.patch_out_dim

    def patch_temperature_at(self, epoch: int) -> float:
        """Return the teacher's temperature for patches in an epoch."""
        low, high = self.warmup_teacher_patch_temp, self.teacher_patch_temp
        over = self.warmup_teacher_temp_epochs
        return high if epoch >= over else low + (high - low) * epoch / max(over - 1, 1)

    def view_plan(self) -> ViewPlan:
        """Return two masked global crops and the local ones."""
        first, second, *rest = self.views()
        grid = self.model.grid_size
        mask = BlockMask(
            grid_size=grid,
            ratios=((0.0, 0.0), (self.mask_ratio_min, self.mask_ratio_max)),
            smallest=self.block_patches,
            exact=False,
        )
        masked = (
            View(size=v.size, scale=v.scale, flip=v.flip, colour=v.colour, mask=mask)
            for v in (first, second)
        )
        return ViewPlan(views=(*masked, *rest))
