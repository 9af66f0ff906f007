"""The stage's pictures of test images that are the same for every encoder, and their data.

Colours of patches, attention of [cls], nearest neighbours, UMAP. People look at them, and the
report puts those of several encoders side by side; no stage reads them and no metric is theirs.
"""

import base64
import json
import logging
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from asl_core.data.shards import PackedDataset
from asl_core.modules.encoder import Encoder
from asl_core.recipes.analysis import TokenAnalysis
from pipeline.stages import same_images_figures as figures
from pipeline.stages.encoder_view import EncoderView, Shown, attention_top, look
from pipeline.stages.request import StageRequest
from pipeline.writing import or_null

logger = logging.getLogger(__name__)

FOLDER, DATA = "same_images", "same_images.json"
LONGEST_SIDE = 128
"""Pixels of an image in the data file; a page shows it no larger."""
_EXACT_SIDE = 64
"""Up to here images are stored without loss."""


def show_same_images(
    request: StageRequest[TokenAnalysis], encoder: Encoder, dataset: PackedDataset
) -> None:
    """Write the data and the pictures, and record the pictures in the journal."""
    view = look(encoder, dataset, request.recipe, request.resources)
    for kind, reason in view.left_out.items():
        logger.info("%s: no %s: %s", request.key, kind, reason)
    folder = request.out / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    content = json.dumps(or_null(_as_data(view, encoder, dataset, request.recipe)), allow_nan=False)
    (folder / DATA).write_text(content + "\n", encoding="utf-8")
    for path in figures.draw(folder, view):
        request.journal.artifact(path.relative_to(request.out).as_posix())


# --- the data file, of which the report makes one page for all encoders


def _as_data(
    view: EncoderView, encoder: Encoder, dataset: PackedDataset, recipe: TokenAnalysis
) -> dict[str, object]:
    manifest, vit = dataset.manifest, encoder.vit
    content: dict[str, object] = {
        "dataset": {
            "name": manifest.name,
            "digest": manifest.digests[dataset.split],
            "images": len(dataset),
        },
        "encoder": {"image_size": vit.image_size, "patch_size": vit.patch_size},
        "compared": {"images": len(view.compared), "pooling": recipe.pooling},
        "pictured": [_image_data(shown) for shown in view.pictured],
        "left_out": view.left_out,
    }
    if view.colours is not None:
        side = vit.grid_size
        tiles = (255 * view.colours.colours).round().byte().unflatten(1, (side, side)).numpy()
        content["patches"] = {
            "explained": list(view.colours.explained),
            "foreground": view.colours.foreground is not None,
            "tiles": [_uri(tile) for tile in tiles],
        }
    if view.attention is not None:
        by_head = _scaled(view.attention)
        mean = _scaled(view.attention.mean(dim=1, keepdim=True))
        content["attention"] = {
            "mean": {"top": mean[1], "tiles": [_uri(maps[0]) for maps in mean[0]]},
            "heads": {
                "top": by_head[1], "tiles": [[_uri(tile) for tile in maps] for maps in by_head[0]]
            },
        }  # fmt: skip
    if view.nearest is not None:
        content["neighbours"] = [
            [_image_data(shown) | {"cosine": cosine}
             for shown, cosine in zip(found, cosines, strict=True)]
            for found, cosines in zip(view.neighbours, view.nearest.cosines.tolist(), strict=True)
        ]  # fmt: skip
    return content


def _image_data(shown: Shown) -> dict[str, object]:
    return {"index": shown.index, "label": shown.label, "image": _uri(shown.pixels)}


def _scaled(maps: Tensor) -> tuple[NDArray[np.uint8], float]:
    """Return maps as grey levels, and what the brightest level stands for."""
    top = attention_top(maps)
    return (255 * (maps / top).clamp(0, 1)).round().byte().numpy(), top


def _uri(pixels: NDArray[np.uint8]) -> str:
    """Return an image as a data URI: PNG where it is small, JPEG of at most `LONGEST_SIDE`."""
    image, buffer = Image.fromarray(pixels), BytesIO()
    exact = image.width <= _EXACT_SIDE
    if image.width > LONGEST_SIDE:
        image = image.resize((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    if exact:
        image.save(buffer, "PNG", optimize=True)
    else:
        image.save(buffer, "JPEG", quality=85)
    kind = "png" if exact else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
