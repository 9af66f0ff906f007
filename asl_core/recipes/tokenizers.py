"""Tokenizers: what gives every patch of a dataset's images a code. One dataclass per `kind`."""

import os
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Protocol

from asl_core.recipes.optimisation import require_at_least, require_share
from asl_core.recipes.tokenized import TOKEN_PIXELS, TokenPretraining


@dataclass(frozen=True, kw_only=True)
class Tokenizing(ABC):
    """What all kinds have: a dataset, and views of its training images."""

    notes: ClassVar[tuple[str, ...]] = ()
    """What a reader of the results should know; printed under every table."""

    dataset: str
    """Name of an entry under `datasets`. The new dataset has its images, and a tokenizer."""
    images: int
    """How many training images it is fitted to or measured on; all, where there are fewer."""
    image_size: int
    """Side of their views in the tokenizer's own pixels."""
    crop_scale_min: float = 0.08
    """A view is a random crop of an area between this share and 1, mirrored or not; .08 is
    BEiT's (`RandomResizedCropAndInterpolationWithTwoPic` in `beit/transforms.py`)."""
    seed: int = 0

    def __post_init__(self) -> None:
        require_at_least(self, 1, "images", "image_size")
        require_share("crop_scale_min", self.crop_scale_min)
        if self.image_size % self.patch_pixels:
            pixels = self.patch_pixels
            raise ValueError(
                f"image_size {self.image_size} must be a multiple of the {pixels} pixels that one "
                f"code stands for; use {self.image_size // pixels * pixels or pixels}"
            )

    @property
    @abstractmethod
    def patch_pixels(self) -> int:
        """Side of what one code stands for, in the tokenizer's own pixels."""

    @property
    def patches(self) -> int:
        """Patches of one view."""
        return (self.image_size // self.patch_pixels) ** 2


@dataclass(frozen=True, kw_only=True)
class KMeansTokenizer(Tokenizing):
    """Centres of k-means over patches, each normalised as MAE's target is; fitted here.

    No published method uses it: it stands in where DALL-E's tokenizer is not at hand. Defaults are
    this project's but for the number of codes, which is DALL-E's.
    """

    notes: ClassVar[tuple[str, ...]] = (
        "Codes are of k-means over normalised patches, not of DALL-E's tokenizer.",
    )

    kind: Literal["kmeans"] = "kmeans"
    num_codes: int = 8192
    patch_size: int = 16
    """Side of a patch in pixels; that of the models that are to predict its codes."""
    images: int = 10_000
    image_size: int = 224
    epochs: int = 2
    """How often the images are gone through, cropped anew each time."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "patch_size", "epochs")
        require_at_least(self, 2, "num_codes")
        super().__post_init__()
        if self.images * self.patches < self.num_codes:
            raise ValueError(
                f"num_codes {self.num_codes} exceeds the {self.images * self.patches} patches of "
                f"{self.images} images; raise images, or lower num_codes"
            )

    @property
    def patch_pixels(self) -> int:
        """That of a patch: it reads images as the model sees them."""
        return self.patch_size


@dataclass(frozen=True, kw_only=True)
class DalleTokenizer(Tokenizing):
    """The encoder of DALL-E's discrete variational autoencoder, from a file that you have."""

    kind: Literal["dalle"] = "dalle"
    weights: str
    """Its state dict under DALL-E's names, .safetensors or .pt; relative to the data root, or
    absolute. `~` and $VARIABLES are expanded."""
    sha256: str = ""
    """Of that file; with it the result is the same wherever the file is. Empty: any file with these
    sizes is taken, and another one under the same name is not noticed."""
    num_codes: int = 8192
    """`vocab_size` of `dall_e/encoder.py`."""
    width: int = 256
    """`n_hid` there: channels of the first of four groups; each later one has twice as many."""
    images: int = 1_000
    image_size: int = 112
    """Of what is measured; BEiT reads 112 pixels for its 14 x 14 patches."""

    def __post_init__(self) -> None:
        if not self.weights:
            raise ValueError("weights is empty; give the file with the encoder's state dict")
        if self.sha256 and not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise ValueError(
                f"sha256 must be 64 hexadecimal digits, got {self.sha256!r}; sha256sum prints it"
            )
        require_at_least(self, 2, "num_codes")
        if self.width < 4 or self.width % 4:
            raise ValueError(f"width must be a multiple of 4, got {self.width}")
        super().__post_init__()

    @property
    def patch_pixels(self) -> int:
        """Three poolings by two."""
        return TOKEN_PIXELS[self.kind]

    def file(self, data_root: Path) -> Path:
        """Return where the weights lie on this machine."""
        return data_root / os.path.expanduser(os.path.expandvars(self.weights))


Tokenizer = KMeansTokenizer | DalleTokenizer
"""What an entry of `tokenizers` in params.yaml may be."""


class Described(Protocol):
    """What is known of a tokenizer wherever it is: in params.yaml, or beside its images."""

    @property
    def kind(self) -> str: ...

    @property
    def patch_pixels(self) -> int: ...


def require_tokenizer(recipe: TokenPretraining, tokenizer: Described | None) -> None:
    """Refuse a dataset that has not the tokenizer that a method learns from.

    Args:
        recipe: Of the method; names the dataset.
        tokenizer: The dataset's; None: it has none.

    Raises:
        ValueError: Says what is wrong and what to do.
    """
    name, wanted = recipe.dataset, recipe.token_size // recipe.model.grid_size
    if tokenizer is None:
        raise ValueError(
            f"{recipe.method} predicts codes of patches, and dataset {name} has no tokenizer; name "
            "an entry of `tokenizers` as its dataset"
        )
    kind, pixels = tokenizer.kind, tokenizer.patch_pixels
    if kind != recipe.tokenizer:
        raise ValueError(
            f"{recipe.method} wants codes of {recipe.tokenizer}, and dataset {name} has those of "
            f"{kind}; name another one, or set tokenizer: {kind}"
        )
    if pixels != wanted:
        raise ValueError(
            f"patches of the model have {wanted} pixels, those of dataset {name}'s tokenizer "
            f"{pixels}; fit one with patch_size: {wanted}"
        )
