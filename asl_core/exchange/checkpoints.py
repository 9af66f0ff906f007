"""Checkpoint files of others: read without running anything, and the encoder in them found."""

import argparse
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from asl_core.errors import InputError
from asl_core.exchange.origin import Branch

PATCH_WEIGHT = "patch_embed.proj.weight"
"""The tensor by which an encoder with timm's names is recognised."""

BRANCHES = {
    Branch.teacher: {"teacher", "teacher_encoder", "momentum_encoder"},
    Branch.student: {"student", "base_encoder"},
}
EVALUATED = (
    "teacher", "base_encoder", "model_ema", "state_dict_ema", "model", "state_dict",
)  # fmt: skip
"""Which of several encoders counts, the first that is there: as their authors evaluate them, and
with averaged weights where there are such, as timm reads its own checkpoints."""

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


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint file as read.

    Attributes:
        content: Tensors by name, or mappings of such beside other things.
        form: What wrote the file.
        num_heads: What the file says of itself, as those that this project exports do.
    """

    content: Mapping[str, Any]
    form: Literal["torch", "safetensors"]
    num_heads: int | None


@dataclass(frozen=True)
class FoundEncoder:
    """One encoder of a checkpoint.

    Attributes:
        container: Key of the checkpoint that holds it, empty for none.
        prefix: What stands before its names there.
        tensors: By their names without the prefix.
        outside: Names of the container's other tensors.
        beside: Keys of the checkpoint beside the container.
    """

    container: str
    prefix: str
    tensors: dict[str, Tensor]
    outside: tuple[str, ...]
    beside: tuple[str, ...]

    @property
    def words(self) -> set[str]:
        """The parts of its place: {"state_dict", "module", "base_encoder"}."""
        return {self.container, *self.prefix.split(".")} - {""}

    @property
    def place(self) -> str:
        """Its place as shown: `state_dict: module.base_encoder.`."""
        return ": ".join(part for part in (self.container, self.prefix) if part) or "the top"


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a safetensors or torch file.

    Raises:
        InputError: There is no such file, it is damaged, or reading it would run code.
    """
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise InputError(f"{path} is not a file; give the path of a checkpoint") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; give another path") from None
    if start[8:9] == b"{":  # after the length of the header comes the header, JSON
        return _read_safetensors(path)
    content = _read_torch(path)
    if not isinstance(content, Mapping):
        raise InputError(
            f"{path} holds a {type(content).__name__}, expected tensors by name; "
            "save model.state_dict()"
        )
    num_heads = content.get("num_heads")
    return Checkpoint(content, "torch", num_heads if isinstance(num_heads, int) else None)


def _read_safetensors(path: Path) -> Checkpoint:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            content = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise InputError(_unreadable(path, error)) from None
    num_heads = metadata.get("num_heads", "")
    return Checkpoint(content, "safetensors", int(num_heads) if num_heads.isdecimal() else None)


def _read_torch(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(PLAIN_RECORDS):
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


def _unreadable(path: Path, error: Exception) -> str:
    reason = next(iter(str(error).splitlines()), "") or type(error).__name__
    return (
        f"cannot read {path} ({reason}); it is truncated or no torch or safetensors file, "
        "fetch it again"
    )


def find_encoder(path: Path, checkpoint: Checkpoint, branch: Branch | None = None) -> FoundEncoder:
    """Find the encoder in a checkpoint, whatever containers and prefixes it stands in.

    Args:
        path: Of the checkpoint, for messages.
        checkpoint: As read.
        branch: Which of two encoders; absent: the one its authors evaluate.

    Raises:
        InputError: There is none, none of this branch, or it is not clear which one counts.
    """
    found = _encoders(checkpoint.content)
    if not found:
        names = ", ".join(map(str, list(checkpoint.content)[:5])) or "nothing"
        raise InputError(
            f"{path} holds no {PATCH_WEIGHT} (it holds {names}): not a ViT under timm's names; "
            "convert its names first"
        )
    places = "; ".join(encoder.place for encoder in found)
    if branch is not None:
        found = _of_branch(found, branch)
        if not found:
            raise InputError(f"{path} has no {branch} (encoders: {places}); drop --branch")
    for word in EVALUATED:
        preferred = [encoder for encoder in found if word in encoder.words]
        if preferred and len(found) > 1:
            found = preferred
    if len(found) > 1:
        raise InputError(f"{path} holds several encoders ({places}); save one of them alone")
    return found[0]


def _of_branch(found: list[FoundEncoder], branch: Branch) -> list[FoundEncoder]:
    """Return the encoders of a branch; a student may have no name but the teacher beside it."""
    named = [encoder for encoder in found if encoder.words & BRANCHES[branch]]
    others = [encoder for encoder in found if not encoder.words & BRANCHES[Branch.teacher]]
    unnamed = branch == Branch.student and not named and len(others) < len(found)
    return others if unnamed else named


def _encoders(content: Mapping[str, Any]) -> list[FoundEncoder]:
    containers = {"": content} | {
        key: value for key, value in content.items() if isinstance(value, Mapping)
    }
    found = []
    for container, mapping in containers.items():
        tensors = {
            name: value
            for name, value in mapping.items()
            if isinstance(name, str) and isinstance(value, Tensor)
        }
        beside = (
            mapping.keys() - tensors.keys() if container == "" else content.keys() - {container}
        )
        for name in tensors:
            if name == PATCH_WEIGHT or name.endswith("." + PATCH_WEIGHT):
                prefix = name.removesuffix(PATCH_WEIGHT)
                own = {
                    n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)
                }
                outside = tuple(n for n in tensors if not n.startswith(prefix))
                found.append(
                    FoundEncoder(container, prefix, own, outside, tuple(sorted(map(str, beside))))
                )
    return found
