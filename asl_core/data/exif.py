"""What a picture's EXIF data say of how it is to be held."""

import io

from PIL import Image

_ORIENTATION = 0x0112
UPRIGHT = 1
SIDEWAYS = frozenset({5, 6, 7, 8})
"""Orientations that swap width and height."""
_MARKS = (b"Exif\0", b"eXIf", b"EXIF")  # of the data in JPEG, PNG, WebP


def orientation(image: bytes) -> int:
    """Return the EXIF orientation of an encoded picture, 1 to 8; 1 where it states none.

    Decoders of pixels leave it alone, viewers and most annotation tools apply it.
    """
    if not any(mark in image for mark in _MARKS):  # Pillow would decode a whole PNG to find none
        return UPRIGHT
    try:
        with Image.open(io.BytesIO(image)) as picture:
            found = picture.getexif().get(_ORIENTATION, UPRIGHT)
    except Exception:  # Pillow raises whatever broken metadata lead it to; the pixels may be sound
        return UPRIGHT
    return found if isinstance(found, int) and 1 <= found <= 8 else UPRIGHT
