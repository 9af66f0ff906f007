"""What the first bytes of an image file say: whether it is one, and what decoding it would cost."""

import io
import struct

from PIL.GifImagePlugin import GifImageFile
from PIL.Image import DecompressionBombError
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

SIGNATURE_BYTES = 12
"""So many bytes tell the formats apart."""
MAX_PIXELS = 2**27
"""Of one image: 400 MB when decoded. A photograph has a hundredth of that; a file of a few
kilobytes can claim more."""

# classes and not Image.open, which warns of large images on standard error
_READERS = {
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "WebP": WebPImageFile,
    "GIF": GifImageFile,
}


def image_format(start: bytes) -> str | None:
    """Return the format by a file's first bytes; None where it is none that can be decoded."""
    if start[:3] == b"\xff\xd8\xff":
        return "JPEG"
    if start[:8] == b"\x89PNG\r\n\x1a\n":
        return "PNG"
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "WebP"
    return "GIF" if start[:4] == b"GIF8" else None


def check_header(content: bytes) -> None:
    """Look at what an image file says of itself, before memory is taken for its pixels.

    Raises:
        ValueError: It is of no format that can be decoded, moves, or is larger than MAX_PIXELS.
    """
    kind = image_format(content[:SIGNATURE_BYTES])
    if kind is None:
        start = ascii(content[:SIGNATURE_BYTES])[2:-1]
        raise ValueError(f"is neither JPEG, PNG, WebP nor GIF: it begins with '{start}'")
    try:
        image = _READERS[kind](io.BytesIO(content))
        width, height = image.size
        moves = getattr(image, "is_animated", False) and kind != "JPEG"  # there: other views
    except DecompressionBombError as error:  # a frame, where the image itself may be small
        raise ValueError(f"has more than {MAX_PIXELS} pixels: {error}") from error
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error) as error:
        raise ValueError(f"cannot be decoded: header of the {kind}: {error}") from error
    if width * height > MAX_PIXELS:
        raise ValueError(f"has more than {MAX_PIXELS} pixels: {width}x{height}")
    if moves:
        raise ValueError(f"is no still image: an animated {kind}")
