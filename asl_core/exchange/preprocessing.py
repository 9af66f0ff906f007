"""What an image goes through before an encoder sees it, as other projects write it down."""

from dataclasses import dataclass
from typing import Any

from asl_core.recipes.normalisation import Rgb

TEST_CROP = 224 / 256
"""Share of the short side that evaluations keep; timm's crop_pct."""
BICUBIC = 3
"""Pillow's number for it, with which Hugging Face names it."""


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Resizing, cropping and normalisation of images for one encoder.

    Attributes:
        image_size: Side of the square input in pixels.
        mean: Of R, G, B in [0, 1].
        std: Likewise.
        whole: The images that it was made for have this size and are taken whole. Otherwise the
            short side becomes 256/224 of it and the centre is cropped, as the evaluations do.
    """

    image_size: int
    mean: Rgb
    std: Rgb
    whole: bool

    @property
    def crop_share(self) -> float:
        """Share of the short side that is kept."""
        return 1.0 if self.whole else TEST_CROP

    @property
    def short_side(self) -> int:
        """Short side in pixels before the crop."""
        return int(self.image_size / self.crop_share)

    def for_timm(self) -> dict[str, Any]:
        """Return what timm has of it in a `pretrained_cfg`."""
        return {
            "mean": self.mean,
            "std": self.std,
            "input_size": (3, self.image_size, self.image_size),
            "interpolation": "bicubic",
            "crop_pct": self.crop_share,
            "crop_mode": "center",
        }

    def for_huggingface(self) -> dict[str, Any]:
        """Return a preprocessor_config.json.

        The processor is the one that resizes the short side and crops, as DINOv2's files have it;
        ViT's own squeezes images into a square.
        """
        return {
            "image_processor_type": "BitImageProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"shortest_edge": self.short_side},
            "resample": BICUBIC,
            "do_center_crop": True,
            "crop_size": {"height": self.image_size, "width": self.image_size},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }

    def in_words(self) -> str:
        """Return it as a sentence."""
        size = self.image_size
        resize = f"the short side becomes {self.short_side} px"
        crop = f"the centre of {size} x {size} px is taken"
        mean, std = (", ".join(map(str, channels)) for channels in (self.mean, self.std))
        return (
            f"RGB; {resize} (bicubic, antialiased), {crop}; pixels in [0, 1], minus the mean "
            f"({mean}), over the standard deviation ({std})"
        )
