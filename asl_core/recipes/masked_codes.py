"""What BEiT, CAE and SplitMask share: codes of hidden patches, and how they are optimised."""

import math
from dataclasses import dataclass
from typing import Literal

from asl_core.recipes.models import EncoderParts
from asl_core.recipes.optimisation import require_at_least, require_rates, require_share
from asl_core.recipes.tokenized import TokenPretraining
from asl_core.recipes.views import BlockMask, View


@dataclass(frozen=True, kw_only=True)
class MaskedCodePretraining(TokenPretraining):
    """Defaults of BEiT's command for ImageNet-1K (README), and of its script where it is silent."""

    epochs: int = 800
    batch_size: int = 2048
    blr: float = 1.875e-4
    """Learning rate per 256 images: the command's 1.5e-3 at its batch of 2048."""
    betas: tuple[float, float] = (0.9, 0.999)
    min_lr: float = 1e-5
    warmup_epochs: float = 10
    schedule: Literal["cosine", "linear", "step", "dino"] = "dino"
    """`utils.cosine_scheduler` is DINO's table."""
    clip_grad: float | None = 3.0
    drop_path: float = 0.1
    layer_scale: float | None = 0.1
    """Factor, at the beginning, of what each branch of a block adds; absent: none. BEiT has 1e-5
    for a ViT-L."""
    crop_scale_min: float = 0.08
    """The smallest crop's share of the image, `transforms.py`."""
    jitter: float = 0.4
    """Strength by which brightness, contrast and saturation of an image are changed, for encoder
    and tokenizer alike, `datasets.py`; 0: not at all."""

    def __post_init__(self) -> None:
        require_rates(self, "drop_path")
        require_share("crop_scale_min", self.crop_scale_min)
        if not 0 <= self.jitter <= 1:
            raise ValueError(f"jitter must be in [0, 1], got {self.jitter}")
        _ = self.encoder_parts  # refuses factors that cannot be
        super().__post_init__()

    @property
    def encoder_parts(self) -> EncoderParts:
        """Factors of branches, and keys without a bias."""
        return EncoderParts(layer_scale=self.layer_scale, key_bias=False)

    def views(self, mask: BlockMask | None = None) -> tuple[View, View]:
        """Return a crop for the encoder, and the same for the tokenizer at its own size."""
        scale, strength = (self.crop_scale_min, 1.0), self.jitter
        own = View(
            size=self.model.image_size, scale=scale, flip=self.flip, mask=mask,
            jitter=(strength, strength, strength, 0.0) if strength else None,
        )  # fmt: skip
        return own, View(size=self.token_size, box="first", interpolation="lanczos")


@dataclass(frozen=True, kw_only=True)
class BlockCodePretraining(MaskedCodePretraining):
    """Those of them that hide rectangles of patches: BEiT and CAE."""

    mask_ratio: float
    """Share of patches hidden, to be rounded to whole patches."""
    smallest_block: int | None = None
    """Patches of the smallest rectangle of a mask; absent: 16 of 196."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "smallest_block")
        patches, hidden = self.model.num_patches, self.num_removed
        if not 1 <= hidden < patches:
            raise ValueError(
                f"mask_ratio {self.mask_ratio} hides {hidden} of {patches} patches; at least one "
                "must be hidden, and one stay"
            )
        # a rectangle is smaller than the view on both sides
        if self.model.grid_size < 2 or hidden < self.block_patches:
            raise ValueError(
                f"mask_ratio {self.mask_ratio} of {patches} patches leaves no room for a block of "
                f"{self.block_patches}: nothing would be hidden; raise it, or lower smallest_block"
            )
        super().__post_init__()

    @property
    def num_removed(self) -> int:
        """Patches that are hidden, at most."""
        return round(self.mask_ratio * self.model.num_patches)

    @property
    def block_patches(self) -> int:
        """Patches of the smallest rectangle of a mask."""
        own = self.smallest_block
        return max(1, round(16 * self.model.num_patches / 196)) if own is None else own

    def blocks(self, *, exact: bool, patience: int = 1) -> BlockMask:
        """Return the mask of rectangles that hides `num_removed` patches, or up to so many."""
        patches = self.model.num_patches
        ratio = self.num_removed / patches
        if ratio * patches < self.num_removed:  # 74.99 of 75 would stop at 74
            ratio = math.nextafter(ratio, 1.0)
        return BlockMask(
            grid_size=self.model.grid_size, ratios=((ratio, ratio),), smallest=self.block_patches,
            exact=exact, patience=patience,
        )  # fmt: skip
