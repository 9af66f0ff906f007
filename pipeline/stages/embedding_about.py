"""What a file of embeddings says of itself, whoever writes it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from asl_core.modules.encoder import Encoder
from asl_core.recipes.imported import ENCODER_FIELDS
from asl_core.transfer.embedding_vectors import InputForm, Reading


def about_file(
    encoder: Encoder,
    reading: Reading,
    form: InputForm,
    *,
    sha256: str,
    name: str,
    key: str | None,
    place: str,
    images: str,
    kind: str,
    classes: tuple[str, ...] | None,
    made_by: Mapping[str, Any],
) -> dict[str, Any]:
    """Return it as JSON has it; `made_by` is all that the rows depend on.

    Places are as seen from the file, so that a folder with everything in it may be moved.

    Args:
        encoder: That embeds.
        reading: What is read of it.
        form: What it gets.
        sha256: Of its weights' file.
        name: As people call it.
        key: Fingerprint of the run that trained it, where that is known.
        place: Of its folder or file.
        images: Folder from which the names of the rows start.
        kind: files, or packed.
        classes: Names of the labels.
        made_by: What else decides: precision, batch, ...
    """
    vit = encoder.vit
    return {
        "made_by": {
            "encoder_sha256": sha256,
            "pooling": reading.pooling,
            "layer": reading.layer,
            "patch_tokens": reading.patch_tokens,
            "preprocessing": {
                "image_size": form.image_size,
                "resize": "short side to 256/224 of image_size, bicubic, antialiased; then the "
                "centre; a square of image_size stays as it is",
                "mean": list(form.mean),
                "std": list(form.std),
            },
            **made_by,
        },
        "encoder": {
            "name": name,
            "key": key,
            "place": place,
            "sha256": sha256,
            **{field: getattr(vit, field) for field in ENCODER_FIELDS},
            "parts": dataclasses.asdict(encoder.parts),
        },
        "images": {"place": images, "kind": kind},
        "dimension": reading.dimension(vit.embed_dim),
        "patches": [vit.grid_size, vit.grid_size, vit.embed_dim] if reading.patch_tokens else None,
        "classes": None if classes is None else list(classes),
    }
