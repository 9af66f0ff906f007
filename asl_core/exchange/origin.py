"""What an exchange of weights is told, and what an import found. No torch: commands show these."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal


class Branch(StrEnum):
    """One of a checkpoint's two encoders."""

    teacher = "teacher"
    student = "student"


class Convention(StrEnum):
    """What the first half of sin-cos positions encodes: the column (MAE) or the row (MoCo v3)."""

    x_first = "x-first"
    y_first = "y-first"


class Form(StrEnum):
    """Who is to read an exported folder."""

    timm = "timm"
    mae = "mae"
    huggingface = "huggingface"
    onnx = "onnx"


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """What a checkpoint does not say of itself; what is absent is taken from the file."""

    branch: Branch | None = None
    """Of a file with two encoders; absent: the one its authors evaluate, the teacher of DINO and
    iBOT, the base encoder of MoCo v3."""
    prefix: str | None = None
    """Place of one of several encoders, `state_dict:module.encoder.`; empty: the top."""
    num_heads: int | None = None
    """Absent: as the file says, else one per 64 of the width; 16 for ViT-H and wider, 12 for
    MoCo v3's ViT-S."""
    image_size: int | None = None
    """Side of the input in pixels; positions are resized to it. Absent: the checkpoint's."""
    positions: Convention | None = None
    """Sin-cos convention of a checkpoint that stores no positions."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where an imported encoder comes from and how it was read: origin.json."""

    file: str
    """Name of the file, without its folder."""
    sha256: str
    """Of that file."""
    form: Literal["torch", "safetensors"]
    container: str
    """Key of the file that holds the weights; empty: they are at its top."""
    prefix: str
    """What stands before the encoder's names, `module.backbone.`."""
    beside: tuple[str, ...]
    """What else is at the top of the file: optimizer, args, the other branch."""
    positions: str
    """`sin-cos, x-first`, `sin-cos, y-first` or `learned`; `rebuilt` where none were stored."""
    num_heads_from: str
    dropped: dict[str, int]
    """Tensors that are not of the encoder, counted by the beginning of their names."""
    notes: tuple[str, ...]
    """What was assumed or changed."""
    published: str | None = None
    """Name of the published weights that the file is, by the digest that their authors give; or by
    its address alone, where they give none."""
    encoder_sha256: str = ""
    """Of the encoder.safetensors beside this file."""
