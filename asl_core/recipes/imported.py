"""Encoders that were trained elsewhere, as experiments."""

import re
from dataclasses import dataclass, field
from typing import Any, Literal

from asl_core.recipes.models import MODELS, Vit
from asl_core.recipes.published import PUBLISHED

ENCODER_FIELDS = (
    "image_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio",
    "registers", "layer_scale", "mlp",
)  # fmt: skip
"""What of a `Vit` an encoder without decoder has."""

FOLDER = "encoders"
"""Of a suite, where encoders are imported to."""

ORIGIN_FILE = "origin.json"
"""Beside the weights: the file that they came from and how it was read."""


@dataclass(frozen=True, kw_only=True)
class ImportedRecipe:
    """Weights that `asl-pipe import-encoder` brought in: nothing is trained, all transfer runs."""

    method: Literal["imported"] = "imported"
    path: str = ""
    """Folder with encoder.safetensors; relative to the suite's folder, or absolute."""
    sha256: str = ""
    """Of its encoder.safetensors; with `model` it identifies the result, wherever the file is."""
    published: str | None = None
    """In place of both: a name of PUBLISHED, whose weights `asl-pipe import-encoder --published`
    brings into the suite's folder and compares with the digest that their authors give."""
    dataset: str
    """Name of an entry under `datasets`: the part of a table that it belongs to. Not read."""
    model: Vit = field(default_factory=lambda: MODELS["vit-b"])
    """Its size; the decoder's fields mean nothing here."""
    epochs: int | None = None
    """How long its authors trained it, as the tables state it."""

    def __post_init__(self) -> None:
        if self.published is not None:
            self._check_published()
        elif not self.path:
            raise ValueError("path is empty; name the folder that asl-pipe import-encoder wrote")
        elif not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise ValueError(
                f"sha256 must be 64 hexadecimal digits, got {self.sha256!r}; "
                "asl-pipe import-encoder prints it"
            )
        if self.epochs is not None and self.epochs < 1:
            raise ValueError(f"epochs must be at least 1, got {self.epochs}")

    def _check_published(self) -> None:
        if self.published not in PUBLISHED:
            raise ValueError(
                f"published must be one of {', '.join(PUBLISHED)}, got {self.published!r}"
            )
        if self.path or self.sha256:
            raise ValueError("published weights have a place and a digest; remove path and sha256")
        if self.model != PUBLISHED[self.published].model:
            raise ValueError(f"model is another than that of {self.published}; remove it")

    @property
    def folder(self) -> str:
        """Folder with the encoder; relative to the suite's folder, or absolute."""
        return self.path if self.published is None else f"{FOLDER}/{self.published}"


def encoder_differences(vit: Vit, other: Vit) -> dict[str, Any]:
    """Return the encoder's fields of `vit` that `other` has otherwise."""
    return {
        name: getattr(vit, name)
        for name in ENCODER_FIELDS
        if getattr(vit, name) != getattr(other, name)
    }


def shown_differences(differences: dict[str, Any]) -> str:
    """Return fields as a message says them: `depth 2, registers 4`."""
    return ", ".join(
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in differences.items()
    )


def nearest_size(vit: Vit, sizes: dict[str, Vit]) -> tuple[str, dict[str, Any]]:
    """Return the named size that needs the fewest changes to have this encoder, and the changes."""
    changes = {name: encoder_differences(vit, size) for name, size in sizes.items()}
    name = min(changes, key=lambda name: len(changes[name]))
    return name, changes[name]
