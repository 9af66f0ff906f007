"""Weights from and for other projects, for the commands that bring them: no stage of the DAG."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from asl_core.data.manifest import FILE_NAME
from asl_core.data.shards import PackedDataset
from asl_core.errors import InputError
from asl_core.exchange.exporting import export_encoder, usage
from asl_core.exchange.importing import import_encoder
from asl_core.exchange.origin import Form, ImportOptions, Origin
from asl_core.exchange.preprocessing import Preprocessing
from asl_core.exchange.read_back import Comparison, compare_with_reader
from asl_core.modules.encoder import WEIGHTS_FILE, load_encoder, save_encoder
from asl_core.recipes.imported import ORIGIN_FILE
from asl_core.recipes.models import Vit
from asl_core.recipes.normalisation import Rgb


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


@dataclass(frozen=True)
class Exported:
    """What was written for others.

    Attributes:
        vit: Sizes of the encoder.
        parameters: Their number.
        preprocessing: What images go through before it.
        usage: The Python that reads the folder, given what it is called.
        comparison: How far its reader is from the encoder.
    """

    vit: Vit
    parameters: int
    preprocessing: Preprocessing
    usage: Callable[[str], str]
    comparison: Comparison


def write_exported(
    folder: Path, encoder_folder: Path, form: Form, mean: Rgb, std: Rgb, dataset: Path
) -> Exported:
    """Write an encoder for others into an empty folder, and read it as they do.

    Args:
        folder: Where to write.
        encoder_folder: As pre-training left it.
        form: Who is to read it.
        mean: Of the normalisation that it was trained with.
        std: Likewise.
        dataset: That it was trained on; it need not be there.

    Raises:
        InputError: The encoder is damaged, the form cannot hold it, a library is missing, or the
            reader computes something else.
    """
    encoder = load_encoder(encoder_folder).eval()
    size = encoder.vit.image_size
    preprocessing = Preprocessing(
        image_size=size, mean=mean, std=std, whole=_has_images_of(dataset, size)
    )
    export_encoder(encoder, form, folder, preprocessing)
    return Exported(
        encoder.vit,
        sum(parameter.numel() for parameter in encoder.parameters()),
        preprocessing,
        partial(usage, encoder.vit, form, preprocessing=preprocessing),
        compare_with_reader(encoder, form, folder),
    )


def _has_images_of(dataset: Path, size: int) -> bool:
    """Say whether a dataset's images, the first ones, are squares of a size; no, if it is gone."""
    if not (dataset / FILE_NAME).is_file():
        return False
    try:
        images = PackedDataset(dataset, "train")
    except InputError:  # nothing is trained on it here
        return False
    return all(images.image_size(index) == (size, size) for index in range(min(len(images), 100)))
