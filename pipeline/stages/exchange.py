"""Weights from and for other projects, for the commands that bring them: no stage of the DAG."""

import dataclasses
import hashlib
import json
from pathlib import Path

from asl_core.exchange.exporting import export_encoder, usage
from asl_core.exchange.importing import import_encoder
from asl_core.exchange.origin import Form, ImportOptions, Origin
from asl_core.modules.encoder import WEIGHTS_FILE, load_encoder, save_encoder
from asl_core.recipes.imported import ORIGIN_FILE
from asl_core.recipes.models import Vit


def read_checkpoint_into(
    folder: Path, checkpoint: Path, options: ImportOptions, published: str | None
) -> tuple[Vit, Origin, str]:
    """Write the encoder of a checkpoint into a new folder, with origin.json.

    Args:
        folder: To be made.
        checkpoint: File of another project.
        options: What the file does not say of itself.
        published: What the file is known to be.

    Returns:
        Its sizes, where it comes from, and the sha256 of its encoder.safetensors.
    """
    state, vit, origin = import_encoder(checkpoint, options)
    folder.mkdir(parents=True)  # not before it is known that there is something to write
    save_encoder(folder, state, vit)
    with (folder / WEIGHTS_FILE).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    origin = dataclasses.replace(origin, published=published, encoder_sha256=digest)
    (folder / ORIGIN_FILE).write_text(json.dumps(dataclasses.asdict(origin), indent=2) + "\n")
    return vit, origin, digest


def write_exported(path: Path, encoder_folder: Path, form: Form, name: str) -> str:
    """Write an encoder in the form of another project.

    Returns:
        The Python that reads it once the file is called `name`.
    """
    encoder = load_encoder(encoder_folder)
    export_encoder(encoder, form, path)
    return usage(encoder.vit, form, name)
