"""Checkpoint files of others: read without running anything that they may hold."""

import argparse
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from asl_core.errors import InputError

# Training scripts save their arguments, and learning rates as NumPy numbers: data, no code.
PLAIN_RECORDS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(name)) for name in ("float64", "float32", "int64", "bool")),
    *(
        (np.float64(0).__reduce__()[0], f"numpy.{package}.multiarray.scalar")
        for package in ("core", "_core")
    ),
]


ARGUMENTS = ("args", "config", "cfg", "hparams", "hyper_parameters", "model_args")
IMAGE_SIZES = ("img_size", "image_size", "input_size")
"""Where training scripts store the side, or the sides, of their input."""


OTHER_KINDS = {
    b"version https://git-lfs": "a pointer of Git LFS and not the file; run `git lfs pull` there",
    b"\x1f\x8b": "compressed; unpack it with gunzip first",
    b"\x89HDF": "an HDF5 file; load it with its own library and save model.state_dict()",
    b"\x93NUMPY": "a NumPy array, expected tensors by name; save model.state_dict()",
    b"<": "a web page or XML and no checkpoint; fetch the file itself",
}
"""How a file begins that is often taken for a checkpoint -> what it is and what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint file as read.

    Attributes:
        content: Tensors by name, or mappings of such beside other things.
        form: What wrote the file.
        num_heads: What the file says of itself, as those that this project exports do.
        image_size: Height and width of the input in pixels, where its training's arguments say so.
    """

    content: Mapping[str, Any]
    form: Literal["torch", "safetensors"]
    num_heads: int | None
    image_size: tuple[int, int] | None


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a safetensors or torch file.

    Raises:
        InputError: There is no such file, it is damaged, or reading it would run code.
    """
    try:
        with path.open("rb") as file:
            start = file.read(300)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise InputError(f"{path} is not a file; give the path of a checkpoint") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; give another path") from None
    for magic, kind in OTHER_KINDS.items():
        if start.startswith(magic):
            raise InputError(f"{path} is {kind}")
    if start[8:9] == b"{":  # after the length of the header comes the header, JSON
        return _read_safetensors(path)
    content = _read_torch(path)
    if not isinstance(content, Mapping):
        raise InputError(
            f"{path} holds a {type(content).__name__}, expected tensors by name; "
            "save model.state_dict()"
        )
    num_heads = content.get("num_heads")
    return Checkpoint(
        content, "torch", num_heads if isinstance(num_heads, int) else None, _image_size(content)
    )


def _read_safetensors(path: Path) -> Checkpoint:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            content = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise InputError(_unreadable(path, error)) from None
    stated = {name: int(text) for name, text in metadata.items() if re.fullmatch(r"\d{1,9}", text)}
    return Checkpoint(content, "safetensors", stated.get("num_heads"), _image_size(stated))


def _read_torch(path: Path) -> Any:
    if _is_torchscript(path):
        raise InputError(f"{path} is a TorchScript archive, a program; save model.state_dict()")
    if (record := _damaged_record(path)) is not None:
        raise InputError(_unreadable(path, ValueError(f"{record} is damaged")))
    try:
        with torch.serialization.safe_globals(PLAIN_RECORDS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old forms of tensors, which are refused by name
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if (called := re.search(r"GLOBAL ([\w.]+)", str(error))) is None:
            raise InputError(_unreadable(path, error)) from None
        raise InputError(
            f"{path} is refused: reading it would call {called[1]}, and only tensors and plain "
            "values are read; ask for safetensors or for torch.save(model.state_dict())"
        ) from None
    except Exception as error:  # a damaged file may fail as anything
        raise InputError(_unreadable(path, error)) from None


def _damaged_record(path: Path) -> str | None:
    """Return the first part of a torch file that is not as it was written; torch does not look.

    Where no part has the sum that it should have, it was saved without sums.
    """
    if not zipfile.is_zipfile(path):
        return None
    sound, damaged = 0, None
    with zipfile.ZipFile(path) as archive:
        for part in archive.infolist():
            try:
                with archive.open(part) as file:
                    while file.read(2**20):
                        pass
                sound += 1
            except zipfile.BadZipFile:
                damaged = damaged or part.filename
    return damaged if sound else None


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _unreadable(path: Path, error: Exception) -> str:
    reason = next(iter(str(error).splitlines()), "").partition(". ")[0]
    if " " not in reason or "eights" in reason:  # a bare number; advice to run the code in it
        reason = "no torch file" if path.stat().st_size else "it is empty"
    return (
        f"cannot read {path} ({reason}); it is truncated or no torch or safetensors file, "
        "fetch it again"
    )


def _image_size(content: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return what a file, or the arguments stored in it, say of the input's height and width."""
    for record in (content, *(content.get(name) for name in ARGUMENTS)):
        values = vars(record) if isinstance(record, argparse.Namespace) else record
        if not isinstance(values, Mapping):
            continue
        for name in IMAGE_SIZES:
            size = values.get(name)
            sides = (size, size) if isinstance(size, int) else size  # timm's has the channels first
            if isinstance(sides, list | tuple) and len(sides) in (2, 3):
                height, width = sides[-2:]
                if isinstance(height, int) and isinstance(width, int):
                    return height, width
    return None
