"""What is stored of an image file from anywhere: itself, or what Pillow makes of it, once.

Readers of packed datasets know JPEG, PNG and WebP and take pixels as they lie in the file. A file
of which they would see something else than a viewer shows is converted as it is packed: to PNG,
which loses nothing, or to JPEG where the file was lossy or is made smaller. Transparency is
dropped, as those readers drop it; colour profiles are ignored, as they ignore them.
"""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.Image import Resampling, Transpose
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from asl_core.data.image_header import MAX_PIXELS, SIGNATURE_BYTES, image_format

_ORIENTATION = 0x0112
_TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
"""EXIF orientation -> what makes the picture upright."""
_MARKS = (b"Exif\0", b"eXIf", b"EXIF", b"tiff:Orientation")
"""Where a file has none of these, it states no orientation; the last is XMP's."""

_READERS: dict[str, Any] = {
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "WebP": WebPImageFile,
    "GIF": GifImageFile,
    "BMP": BmpImageFile,
    "TIFF": TiffImageFile,
    "AVIF": AvifImageFile,
}
"""Classes and not Image.open, which warns of large images and knows all formats there are."""
_FORMATS = ", ".join((*_READERS, "HEIC"))
_LOSSY = frozenset(("JPEG", "WebP", "AVIF", "HEIC"))
_HEIC_BRANDS = frozenset(
    (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
)  # fmt: skip
_PNG_BITS = 24
"""Where a PNG says how many bits a value has."""


@dataclass(frozen=True)
class Converted:
    """What is stored.

    Attributes:
        content: JPEG, PNG or WebP.
        done: What was done to it, in words that a number of images precedes; none: nothing.
    """

    content: bytes
    done: tuple[str, ...] = ()


def format_of(content: bytes) -> str | None:
    """Return the format of an image file by its first bytes; None where it is none of ours."""
    start = content[:SIGNATURE_BYTES]
    if known := image_format(start):
        return known
    if start[:2] == b"BM":
        return "BMP"
    if start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "TIFF"
    if start[4:8] == b"ftyp":
        length = int.from_bytes(start[:4], "big")
        brands = {content[at : at + 4] for at in (8, *range(16, min(length, 256), 4))}
        if brands & {b"avif", b"avis"}:
            return "AVIF"
        return "HEIC" if brands & _HEIC_BRANDS else None
    return None


def convert(content: bytes, max_side: int | None, quality: int) -> Converted:
    """Return what is stored of an image file; the file itself where that may be.

    A still JPEG, PNG or WebP of 8 bits, upright and not too large, is stored as it is, sound or
    not. Of an image that moves, or has pages, the first is taken. Of 16 bits the upper 8 are taken,
    as Pillow does for colours; for grey values it would make white of all from 255 on.

    Args:
        content: Of the file.
        max_side: Longest side of what is stored, in pixels; None: any.
        quality: Of a JPEG that is made.

    Raises:
        ValueError: It cannot be read, or has more than MAX_PIXELS pixels; says why.
    """
    kind = format_of(content)
    if kind is None:
        start = ascii(content[:SIGNATURE_BYTES])[2:-1]
        raise ValueError(f"is of no format that is read ({_FORMATS}): it begins with '{start}'")
    reader = _READERS.get(kind) or _heic_reader()
    try:
        with reader(io.BytesIO(content)) as image:
            return _convert(content, kind, image, max_side, quality)
    except _Refused as error:
        raise ValueError(str(error)) from None
    except Exception as error:  # Pillow raises whatever a broken file leads it to
        said = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise ValueError(f"cannot be decoded: as {kind}: {said}") from error


class _Refused(Exception):
    """An image is sound, and yet not taken."""


def _convert(
    content: bytes, kind: str, image: Any, max_side: int | None, quality: int
) -> Converted:
    turn = _orientation(content, kind, image)
    limit = max_side if max_side is not None and max(image.size) > max_side else None
    wide = kind == "PNG" and content[_PNG_BITS] > 8
    moves = bool(getattr(image, "is_animated", False))
    plain = kind in ("PNG", "WebP") or (kind == "JPEG" and image.mode in ("L", "RGB"))
    if plain and not (turn != 1 or limit or wide or moves):
        return Converted(content)
    done = [] if kind in ("JPEG", "PNG", "WebP") else [f"from {kind}"]
    if moves:
        done.append("with several frames, of which the first")
    if turn != 1:
        done.append("turned as their EXIF orientation says")
    if limit is not None:
        done.append("made smaller")
        if kind == "JPEG":  # its decoder halves at little cost; not below twice what is wanted
            width, height = _within(image.size, limit)
            image.draft(image.mode, (2 * width, 2 * height))
    if image.width * image.height > MAX_PIXELS:
        raise _Refused(f"has more than {MAX_PIXELS} pixels: {image.width}x{image.height}")
    image.load()
    if wide or image.mode.startswith("I;16"):
        done.append("from 16 bits a value")
    elif image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA"):
        done.append(f"from {image.mode}")
    pixels = _eight_bits(image)
    if turn != 1 and kind != "TIFF":  # which Pillow turned while loading
        pixels = pixels.transpose(_TURNS[turn])
    if limit is not None:
        pixels = _reduced(pixels, limit)
    lossy = limit is not None or kind in _LOSSY
    return Converted(_encode(pixels, quality if lossy else None), tuple(done))


def _heic_reader() -> Any:
    try:
        from pillow_heif import HeifImageFile  # of no use to most
    except ImportError:
        raise ValueError("is HEIC, which the package pillow-heif reads; install it") from None
    return HeifImageFile


def _orientation(content: bytes, kind: str, image: Any) -> int:
    """Return the EXIF orientation that is to be undone, 1 to 8; 1 where there is none."""
    if kind in ("JPEG", "PNG", "WebP") and not any(mark in content for mark in _MARKS):
        return 1  # Pillow would decode a whole PNG to find that
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # Pillow raises whatever broken metadata lead it to; the pixels may be sound
        return 1
    return found if found in _TURNS else 1


def _eight_bits(image: Any) -> Image.Image:
    """Return the picture in grey or RGB, 8 bits a value, without transparency."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise _Refused(
            f"has values of 32 bits, and nothing says which is white (Pillow's mode {image.mode})"
        )
    return image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")


def _reduced(image: Image.Image, max_side: int) -> Image.Image:
    return image.resize(_within(image.size, max_side), Resampling.LANCZOS)


def _within(size: tuple[int, int], max_side: int) -> tuple[int, int]:
    """Return a size of the same shape, whose longer side is `max_side`."""
    width, height = (max(1, round(side * max_side / max(size))) for side in size)
    return width, height


def _encode(image: Image.Image, quality: int | None) -> bytes:
    """Return a JPEG of this quality, or a PNG; nothing but the pixels goes into it."""
    image.info = {}
    file = io.BytesIO()
    if quality is None:
        image.save(file, format="PNG")
    else:
        image.save(file, format="JPEG", quality=quality, subsampling="4:4:4")
    return file.getvalue()
