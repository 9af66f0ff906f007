"""Reading a semantic map so that each pixel is the number that its author wrote."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from asl_core.data.image_header import SIGNATURE_BYTES, check_header, image_format

_GREY, _PALETTE = 0, 3  # PNG's colour types
_COLOUR_NAMES = {2: "RGB", 4: "grey with transparency", 6: "RGB with transparency"}


def read_label_map(content: bytes) -> NDArray[np.uint8]:
    """Return the numbers of a map, (H, W).

    They are exact in a PNG with a palette, where they are positions in it, or with grey of 8 bits.
    Grey of fewer bits is scaled by whatever reads or writes it (1 of 2 bits becomes 85), and other
    formats or colours hold no numbers of classes.

    Raises:
        ValueError: It is neither of these, or damaged.
    """
    if not content:
        raise ValueError("the file of its semantic map is empty")
    kind = image_format(content[:SIGNATURE_BYTES])
    if kind != "PNG":
        raise ValueError(f"its semantic map is no PNG: {kind or 'of an unknown format'}")
    try:
        check_header(content)
    except ValueError as error:
        raise ValueError(f"its semantic map {error}") from error
    bits, colour = content[24], content[25]  # IHDR comes first, at a fixed place
    if colour not in (_GREY, _PALETTE):
        raise ValueError(f"its semantic map is not grey: {_COLOUR_NAMES.get(colour, colour)}")
    if colour == _GREY and bits != 8:
        raise ValueError(f"its semantic map is not of 8 bits but of {bits}")
    return _pixels(content)


def write_label_map(labels: NDArray[np.uint8]) -> bytes:
    """Return the map as a grey PNG; labels: (H, W)."""
    file = io.BytesIO()
    Image.fromarray(labels).save(file, format="PNG")
    return file.getvalue()


def _pixels(content: bytes) -> NDArray[np.uint8]:
    try:
        PngImageFile(io.BytesIO(content)).verify()  # checksums, which reading does not look at
        labels = np.asarray(PngImageFile(io.BytesIO(content)))
    except (OSError, SyntaxError, ValueError, EOFError, IndexError) as error:
        raise ValueError(f"its semantic map is damaged: {error}") from error
    return labels
