"""Any image file as pixels: those that a dataset has which is packed of it."""

import re

import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image

from asl_core.data.conversion import convert
from asl_core.data.image_header import check_header

QUALITY = 95
"""Of the JPEG between, where a lossy file has to be converted."""
_SOURCE_LINE = re.compile(r"^.*\.cpp:\d+, ")


def decode_any(content: bytes) -> Tensor:
    """Decode an image file of any format that the project knows, upright.

    A still JPEG, PNG or WebP of 8 bits is decoded as packed datasets are read; all else is first
    converted as packing converts it (`asl_core.data.conversion`): of what moves the first frame,
    of 16 bits the upper 8, CMYK as Pillow does, transparency dropped, turned as EXIF says.

    Returns:
        (3, H, W), uint8.

    Raises:
        ValueError: It cannot be decoded, or is larger than MAX_PIXELS; says why.
    """
    if not content:
        raise ValueError("the file is empty")
    stored = convert(content, None, QUALITY).content
    check_header(stored)
    try:
        encoded = torch.frombuffer(bytearray(stored), dtype=torch.uint8)
        pixels = decode_image(encoded, ImageReadMode.RGB)
    except RuntimeError as error:  # whatever the decoders of torchvision find
        reason = _SOURCE_LINE.sub("", str(error).splitlines()[0])
        raise ValueError(f"cannot be decoded: {reason}") from error
    if pixels.ndim != 3 or pixels.dtype != torch.uint8:
        raise ValueError(f"is no 8-bit still image: {list(pixels.shape)} {pixels.dtype}")
    return pixels
