"""Sizes of the vision transformers and of MAE's decoder."""

import dataclasses
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Vit:
    """Size of an encoder and of its decoder; the defaults are ViT-B/16 with MAE's decoder."""

    image_size: int = 224
    """Side of the square input in pixels; a multiple of patch_size."""
    patch_size: int = 16
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    """Hidden width of a block's MLP over embed_dim; of a gated one, behind the gate."""
    registers: int = 0
    """Learned tokens beside [cls] that take part in attention and in nothing else: no mask removes
    them, no loss, decoder or mean of tokens sees them. DINOv2 has 0 or 4."""
    layer_scale: float | None = None
    """Factor, at the beginning, of what a block's attention and MLP add: learned, one for each
    channel; 1e-5 in DINOv2. Absent: none, or what the method has."""
    mlp: Literal["gelu", "swiglu"] = "gelu"
    """swiglu: silu(a) * b in place of gelu(a), as in DINOv2's ViT-g."""
    decoder_embed_dim: int = 512
    """MAE: 8 blocks of width 512, 16 heads, for every encoder."""
    decoder_depth: int = 8
    decoder_num_heads: int = 16

    def __post_init__(self) -> None:
        for name in ("image_size", "patch_size", "embed_dim", "depth", "num_heads",
                     "decoder_embed_dim", "decoder_depth", "decoder_num_heads"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.mlp_ratio <= 0:
            raise ValueError(f"mlp_ratio must be positive, got {self.mlp_ratio}")
        if self.registers < 0:
            raise ValueError(f"registers must be at least 0, got {self.registers}")
        if self.mlp not in ("gelu", "swiglu"):
            raise ValueError(f"mlp must be gelu or swiglu, got {self.mlp!r}")
        if self.layer_scale is not None and self.layer_scale <= 0:
            raise ValueError(f"layer_scale must be positive, got {self.layer_scale}")
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size {self.image_size} is not divisible by patch_size {self.patch_size}; "
                f"use {self.image_size // self.patch_size * self.patch_size or self.patch_size}"
            )
        for width, heads in (("embed_dim", "num_heads"),
                             ("decoder_embed_dim", "decoder_num_heads")):  # fmt: skip
            if getattr(self, width) % getattr(self, heads):
                raise ValueError(f"{width} {getattr(self, width)} is not divisible by {heads}")
            if getattr(self, width) % 4:
                raise ValueError(f"{width} must be a multiple of 4 for sin-cos positions")

    @property
    def grid_size(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        return self.grid_size**2

    @property
    def head_mlp_ratio(self) -> float:
        """Hidden width over width of the plain MLPs beside the encoder: decoders, regressors."""
        return self.mlp_ratio if self.mlp == "gelu" else 4.0


@dataclass(frozen=True, kw_only=True)
class EncoderParts:
    """What an encoder has otherwise than a plain ViT: its method decides, not its size."""

    layer_scale: float | None = None
    """Factor, at the beginning, of what a block's attention and MLP add: learned, one for each
    channel. Absent: none."""
    key_bias: bool = True
    """Whether keys have a bias as queries and values have; a softmax does not see it."""
    relative_positions: bool = False
    """Instead of positions a bias of attention by offset, one table for all blocks."""

    def __post_init__(self) -> None:
        if self.layer_scale is not None and self.layer_scale <= 0:
            raise ValueError(f"layer_scale must be positive, got {self.layer_scale}")


PLAIN = EncoderParts()


LATER_FIELDS = ("registers", "layer_scale", "mlp")
"""Fields of a `Vit` that files say only where they are not the default: older ones lack them."""


def stored_fields(vit: Vit) -> dict[str, int | float | str]:
    """Return what files say of a size."""
    return {
        field.name: getattr(vit, field.name)
        for field in dataclasses.fields(vit)
        if field.name not in LATER_FIELDS or getattr(vit, field.name) != field.default
    }


MODELS: dict[str, Vit] = {
    "vit-s": Vit(embed_dim=384, num_heads=6),  # heads as DeiT and timm; MoCo v3 has 12
    "vit-b": Vit(),
    "vit-l": Vit(embed_dim=1024, depth=24, num_heads=16),
    "vit-h": Vit(patch_size=14, embed_dim=1280, depth=32, num_heads=16),
    # Table 6: patch 4 is solo-learn's choice for CIFAR; the paper names none.
    "vit-s-cifar": Vit(image_size=32, patch_size=4, embed_dim=384, num_heads=6),
    # Small in width only: the depths of encoder and decoder are those of ViT-B.
    "vit-demo": Vit(
        image_size=64, patch_size=16, embed_dim=64, num_heads=4,
        decoder_embed_dim=32, decoder_num_heads=2,
    ),
    # These learn within minutes on a CPU: few, wider blocks, small patches, a shallow decoder.
    "vit-demo-4": Vit(
        image_size=32, patch_size=4, embed_dim=96, depth=4, num_heads=3,
        decoder_embed_dim=48, decoder_depth=1, decoder_num_heads=3,
    ),
    "vit-cifar-mini": Vit(
        image_size=32, patch_size=4, embed_dim=128, depth=4, num_heads=4,
        decoder_embed_dim=64, decoder_depth=1, decoder_num_heads=2,
    ),
    "vit-mini-4": Vit(
        image_size=32, patch_size=4, embed_dim=128, depth=6, num_heads=4,
        decoder_embed_dim=64, decoder_depth=2, decoder_num_heads=2,
    ),
    # ViT-Ti for CIFAR on one GPU within minutes. The paper names no decoder for CIFAR; two blocks
    # half as wide as the encoder are what learns in short schedules (as in vit-mini-4), and take
    # a seventh of the multiply-adds.
    "vit-ti-cifar": Vit(
        image_size=32, patch_size=4, embed_dim=192, num_heads=3,
        decoder_embed_dim=96, decoder_depth=2, decoder_num_heads=3,
    ),
    "vit-coco-mini": Vit(
        image_size=128, patch_size=16, embed_dim=128, num_heads=4,
        decoder_embed_dim=64, decoder_num_heads=4,
    ),
}  # fmt: skip
"""The sizes that `model:` in params.yaml may name."""
