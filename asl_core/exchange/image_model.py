"""An encoder behind one function, from images to vectors: what a model of MLflow runs.

It is copied, with all modules that it imports, into each such model, so that these load without
the project.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from asl_core.data.decoding import decode_any
from asl_core.data.samples import Sample
from asl_core.data.views import collate_labelled, evaluation_transform, normalise
from asl_core.modules.encoder import NORM_EPS, Encoder, load_encoder
from asl_core.recipes.normalisation import Rgb

NORMALISATION_FILE = "normalisation.json"
"""Beside the encoder's files: `mean` and `std`."""
IMAGE_COLUMN = "image"
POOLINGS = ("cls", "mean")
BATCH = 64


class ImageModel:
    """Embeds images as the evaluations see them: resized, cropped, normalised.

    Args:
        encoder: On the device on which it is to run.
        mean: Of R, G, B in [0, 1], as it was trained with.
        std: Likewise.
    """

    def __init__(self, encoder: Encoder, mean: Rgb, std: Rgb) -> None:
        self.encoder = encoder.eval()
        self.mean, self.std = mean, std
        self._transform = evaluation_transform(encoder.vit.image_size)

    @torch.no_grad()
    def predict(
        self, model_input: Any, params: Mapping[str, Any] | None = None
    ) -> NDArray[np.float32]:
        """Return one vector for each image.

        Args:
            model_input: Pixels, an array (N, H, W, 3) of integers from 0 to 255; or a list, or a
                DataFrame with the column `image` or a single one, of encoded images (bytes) or
                paths of files.
            params: `pooling`: cls (absent), [cls] after the final norm; or mean, the mean of the
                patches before it, normalised, as probes of the mean read it.

        Shape:
            - Output: (N, D).

        Raises:
            ValueError: It is none of these, or an image cannot be read; says which.
        """
        pooling = (params or {}).get("pooling") or POOLINGS[0]
        if pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, got {pooling!r}")
        rows = [
            self._encode(batch, pooling).float().cpu().numpy()
            for batch in _batches(self._crops(model_input))
        ]
        width = self.encoder.vit.embed_dim
        return np.concatenate(rows) if rows else np.empty((0, width), np.float32)

    def _crops(self, model_input: Any) -> Iterator[Any]:
        for index, pixels in enumerate(_pictures(model_input)):
            yield self._transform(Sample(index, index, pixels))

    def _encode(self, items: list[Any], pooling: str) -> Tensor:
        device = self.encoder.pos_embed.device
        images = normalise(collate_labelled(items).images.to(device), self.mean, self.std)
        tokens = self.encoder.before_norm(images)  # (B, 1 + N, D)
        if pooling == "cls":
            return self.encoder.norm(tokens[:, 0])
        return F.layer_norm(tokens[:, 1:].mean(dim=1), tokens.shape[-1:], eps=NORM_EPS)


def _batches(items: Iterator[Any]) -> Iterator[list[Any]]:
    batch: list[Any] = []
    for item in items:
        batch.append(item)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _pictures(model_input: Any) -> Iterator[Tensor]:
    """Yield images, each (3, H, W) uint8."""
    if hasattr(model_input, "columns"):
        model_input = _column(model_input)
    if isinstance(model_input, np.ndarray) and model_input.dtype != object:
        yield from _of_array(model_input)
        return
    if isinstance(model_input, str | bytes | Mapping) or not hasattr(model_input, "__iter__"):
        raise ValueError(
            f"expected an array (N, H, W, 3), a list or a DataFrame of images, got "
            f"{type(model_input).__name__}"
        )
    for number, given in enumerate(model_input):
        yield _read(given, number)


def _column(frame: Any) -> list[Any]:
    names = [str(name) for name in frame.columns]
    if len(names) == 1:
        return frame.iloc[:, 0].tolist()
    if IMAGE_COLUMN in names:
        return frame[IMAGE_COLUMN].tolist()
    raise ValueError(
        f"the table has the columns {', '.join(names)}, expected {IMAGE_COLUMN}, or one alone"
    )


def _of_array(pixels: NDArray[Any]) -> Iterator[Tensor]:
    if pixels.ndim != 4 or pixels.shape[3] != 3:
        raise ValueError(f"expected an array (N, H, W, 3), got {pixels.shape}")
    if not np.issubdtype(pixels.dtype, np.integer):
        raise ValueError(f"pixels must be integers from 0 to 255, got {pixels.dtype}")
    if pixels.dtype != np.uint8 and pixels.size and not 0 <= pixels.min() <= pixels.max() <= 255:
        raise ValueError(f"pixels must be from 0 to 255, got {pixels.min()} to {pixels.max()}")
    for image in pixels:
        yield torch.from_numpy(np.array(image, np.uint8)).permute(2, 0, 1)  # (3, H, W)


def _read(given: Any, number: int) -> Tensor:
    """Decode one image: its bytes, or the file of that path."""
    if isinstance(given, np.ndarray):
        return next(_of_array(given[None]))
    try:
        match given:
            case bytes() | bytearray() | memoryview():
                return decode_any(bytes(given))
            case str() | Path():
                return decode_any(Path(given).read_bytes())
            case _:
                raise ValueError(f"expected bytes or a path, got {type(given).__name__}")
    except (OSError, ValueError) as error:
        name = f" ({given})" if isinstance(given, str | Path) else ""
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"image {number}{name} cannot be read: {reason}") from None


def _load_pyfunc(path: str) -> ImageModel:  # pyright: ignore[reportUnusedFunction]  # MLflow's name
    """Load what lies in a folder, onto the GPU where there is one."""
    folder = Path(path)
    constants = json.loads((folder / NORMALISATION_FILE).read_text(encoding="utf-8"))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    encoder = load_encoder(folder).to(device)
    return ImageModel(encoder, tuple(constants["mean"]), tuple(constants["std"]))
