"""The encoder that embeds, from its folder or from a checkpoint of others."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from asl_core.errors import InputError
from asl_core.exchange.importing import import_encoder
from asl_core.exchange.origin import ImportOptions
from asl_core.modules.encoder import ARCHITECTURE_FILE, WEIGHTS_FILE, Encoder, load_encoder
from pipeline.stages.embedding_job import EncoderPlace


@dataclass(frozen=True)
class FoundEncoder:
    """An encoder with what identifies it.

    Attributes:
        encoder: Ready to be moved to a device.
        sha256: Of its weights' file.
    """

    encoder: Encoder
    sha256: str


def find_encoder(place: EncoderPlace, image_size: int | None = None) -> FoundEncoder:
    """Load an encoder for inputs of its own size, or of another.

    Raises:
        InputError: There is none, it cannot be read, or its input cannot have that size.
    """
    if place.path.is_dir():
        encoder = load_encoder(place.path, image_size=image_size)
    else:
        state, vit, _ = import_encoder(place.path, ImportOptions(image_size=image_size))
        encoder = Encoder(vit)
        encoder.load_state_dict(state)
    return FoundEncoder(encoder, weights_digest(place.path))


def weights_digest(path: Path) -> str:
    """Return the sha256 of an encoder's weights, in its folder or in a checkpoint.

    Raises:
        InputError: There are none.
    """
    file = path / WEIGHTS_FILE if path.is_dir() else path
    if path.is_dir() and not (path / ARCHITECTURE_FILE).is_file():
        raise InputError(f"no encoder in {path}: {path / ARCHITECTURE_FILE} is missing")
    try:
        with file.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}; give another path") from None
