"""Weights to begin with, out of a file or a folder."""

import hashlib
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from asl_core.errors import InputError
from asl_core.exchange.importing import import_encoder
from asl_core.exchange.origin import ImportOptions
from asl_core.modules.encoder import WEIGHTS_FILE, load_encoder


def read_encoder(place: Path, sha256: str | None = None) -> dict[str, Tensor]:
    """Return an encoder's weights under timm's names.

    Args:
        place: A folder with encoder.safetensors, or with a checkpoint and nothing else; or a
            checkpoint as `import_encoder` reads it.
        sha256: What the file must have; absent: whatever it has.

    Raises:
        InputError: It is missing, is another file, or no encoder can be read from it.
    """
    file = _file_of(place)
    if sha256 is not None:
        _check_digest(file, sha256)
    if file.name == WEIGHTS_FILE:
        return load_encoder(file.parent).state_dict()
    try:
        state, _, _ = import_encoder(file, ImportOptions())
    except InputError as error:
        raise InputError(
            f"initialise: {error} (options are those of `asl-pipe import-encoder`: import it with "
            "them, and name the folder under encoders/)"
        ) from None
    return state


def read_all(file: Path) -> dict[str, Tensor]:
    """Return all weights that a run of ours ended with.

    Raises:
        InputError: They are missing or damaged.
    """
    try:
        return safetensors.torch.load_file(file)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"initialise: cannot read {file}: {error}; restore it or run its stage"
        ) from None


def _file_of(place: Path) -> Path:
    if not place.exists():
        raise InputError(
            f"initialise: {place} does not exist; correct its path in params.yaml or put it there"
        )
    if place.is_file() or (place / WEIGHTS_FILE).exists():
        return place if place.is_file() else place / WEIGHTS_FILE
    files = list(place.iterdir())
    if len(files) != 1:
        raise InputError(
            f"initialise: {place} has no {WEIGHTS_FILE}; name a checkpoint, or a folder that "
            "asl-pipe import-encoder wrote"
        )
    return files[0]


def _check_digest(file: Path, expected: str) -> None:
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    if digest != expected:
        raise InputError(
            f"initialise: {file} has sha256 {digest}, params.yaml says {expected}: it is another "
            "file; put its sha256 into params.yaml or the old file back"
        )
