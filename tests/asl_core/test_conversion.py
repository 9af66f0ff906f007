"""What is stored of any image file: what a viewer shows, to the pixel where nothing was lossy."""

import contextlib
import io
import re
import struct
import zlib

import numpy as np
import pillow_heif
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from source_cases import encoded, png
from torchvision.io import ImageReadMode, decode_image

from asl_core.data import conversion
from asl_core.data.conversion import convert, format_of

TURNED = "turned as their EXIF orientation says"
FRAMES = "with several frames, of which the first"


def smooth(seed: int = 0, height: int = 24, width: int = 40) -> Image.Image:
    """A picture that lossy formats keep closely."""
    pixels = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def decoded(content: bytes) -> NDArray[np.uint8]:
    """Decode as readers of packed datasets do, (H, W, 3)."""
    encoded_bytes = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    image = decode_image(encoded_bytes, ImageReadMode.RGB)
    assert (image.ndim, image.dtype) == (3, torch.uint8)
    return image.permute(1, 2, 0).numpy()


def stored(content: bytes, max_side: int | None = None) -> NDArray[np.uint8]:
    return decoded(convert(content, max_side, 95).content)


def exif(orientation: int) -> Image.Exif:
    made = Image.Exif()
    made[0x0112] = orientation
    return made


def heic(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    pillow_heif.from_pillow(image).save(file, quality=-1, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        encoded(smooth(), "JPEG"),
        encoded(smooth().convert("L"), "JPEG"),
        encoded(smooth(), "JPEG", exif=exif(1)),
        encoded(smooth(), "PNG"),
        encoded(smooth().convert("RGBA"), "PNG"),
        encoded(smooth().quantize(16), "PNG"),
        encoded(smooth().convert("1"), "PNG"),
        encoded(smooth(), "WebP"),
    ],
)
def test_what_is_read_as_it_is_shown_stays_to_the_byte(content: bytes) -> None:
    assert convert(content, None, 95) == conversion.Converted(content)
    assert convert(content, 40, 50).content == content


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "GIF"])
def test_lossless_formats_become_png_without_loss(kind: str) -> None:
    content = encoded(smooth(), kind)
    found = convert(content, None, 95)
    assert found.done == (f"from {kind}",)
    assert found.content.startswith(b"\x89PNG")
    assert (decoded(found.content) == Image.open(io.BytesIO(content)).convert("RGB")).all()


@pytest.mark.parametrize("kind", ["AVIF", "HEIC"])
def test_lossy_formats_become_jpeg(kind: str) -> None:
    content = heic(smooth()) if kind == "HEIC" else encoded(smooth(), kind, quality=95)
    assert format_of(content) == kind
    found = convert(content, None, 95)
    assert found.done == (f"from {kind}",)
    assert found.content.startswith(b"\xff\xd8")
    file = io.BytesIO(content)
    shown = pillow_heif.open_heif(file).to_pillow() if kind == "HEIC" else Image.open(file)
    assert np.abs(decoded(found.content).astype(int) - np.asarray(shown)).mean() < 2


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WebP", "TIFF", "AVIF"])
def test_pictures_are_turned_as_viewers_turn_them(kind: str, orientation: int) -> None:
    """By the definition of the tag: where row 0 and column 0 of the file are in the scene."""
    options = {"quality": 100} if kind in ("JPEG", "AVIF") else {}
    options |= {"lossless": True} if kind == "WebP" else {}
    content = encoded(smooth(), kind, exif=exif(orientation), **options)
    rows = np.asarray(smooth()).astype(int)
    upright = {
        2: rows[:, ::-1], 3: rows[::-1, ::-1], 4: rows[::-1], 5: rows.swapaxes(0, 1),
        6: rows[::-1].swapaxes(0, 1), 7: rows[::-1, ::-1].swapaxes(0, 1),
        8: rows[:, ::-1].swapaxes(0, 1),
    }[orientation]  # fmt: skip
    found = convert(content, None, 95)
    assert TURNED in found.done
    assert decoded(found.content).shape == upright.shape
    assert np.abs(decoded(found.content) - upright).mean() < 4
    assert (stored(found.content) == decoded(found.content)).all()  # once is enough


def test_a_heic_is_turned_once() -> None:
    content = heic(smooth(), exif=exif(6).tobytes())
    assert stored(content).shape == (40, 24, 3)


def test_an_orientation_that_is_none_is_passed_over() -> None:
    content = encoded(smooth(), "JPEG", exif=exif(77))
    assert convert(content, None, 95).content == content


@pytest.mark.parametrize(
    ("kind", "mode"), [("PNG", "<u2"), ("TIFF", "<u2"), ("TIFF", ">u2")], ids=str
)
def test_of_16_bits_the_upper_8_are_taken(kind: str, mode: str) -> None:
    values = np.arange(0, 65536, 1024, dtype=np.uint16).reshape(8, 8)
    content = encoded(Image.fromarray(values.astype(mode)), kind)
    found = convert(content, None, 95)
    assert "from 16 bits a value" in found.done
    assert (decoded(found.content)[..., 0] == values // 256).all()


def test_colours_of_16_bits_lose_the_lower_8() -> None:
    values = np.random.default_rng(0).integers(0, 65536, (4, 6, 3), dtype=np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    content = png(6, 4, rows, bits=16)
    assert (stored(content) == values >> 8).all()


@pytest.mark.parametrize("values", ["f4", "i4"])
def test_values_of_32_bits_are_refused(values: str) -> None:
    content = encoded(Image.fromarray(np.zeros((4, 4), dtype=values)), "TIFF")
    with pytest.raises(ValueError, match="32 bits, and nothing says which is white"):
        convert(content, None, 95)


def test_cmyk_becomes_what_pillow_makes_of_it() -> None:
    content = encoded(smooth().convert("CMYK"), "JPEG", quality=95)
    found = convert(content, None, 100)
    assert found.done == ("from CMYK",)
    pillow = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)
    assert np.abs(decoded(found.content) - pillow).mean() < 1


@pytest.mark.parametrize("kind", ["GIF", "WebP", "PNG", "TIFF"])
def test_of_what_moves_the_first_frame_is_taken(kind: str) -> None:
    frames = [smooth(number).quantize(32).convert("RGB") for number in range(3)]
    options = {"lossless": True} if kind == "WebP" else {}
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    found = convert(content, None, 100)
    assert FRAMES in found.done
    assert np.abs(decoded(found.content).astype(int) - np.asarray(frames[0])).mean() < 3


def test_transparency_is_dropped_as_readers_drop_it() -> None:
    hidden = smooth().convert("RGBA")
    hidden.putalpha(0)
    for kind in ("TIFF", "PNG"):
        assert (stored(encoded(hidden, kind)) == np.asarray(smooth())).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WebP", "BMP"])
def test_larger_ones_become_jpegs_of_that_side(kind: str) -> None:
    content = encoded(smooth(0, 120, 300), kind)
    found = convert(content, 100, 95)
    assert "made smaller" in found.done
    assert found.content.startswith(b"\xff\xd8")
    assert decoded(found.content).shape == (40, 100, 3)
    expected = np.asarray(smooth(0, 120, 300).resize((100, 40), Image.Resampling.LANCZOS))
    assert np.abs(decoded(found.content) - expected.astype(int)).mean() < 3
    assert convert(content, 100, 95) == found
    assert len(convert(content, 100, 30).content) < len(found.content)


def test_a_turned_one_is_measured_as_it_is_shown_and_a_line_stays_a_line() -> None:
    assert stored(encoded(smooth(0, 30, 90), "JPEG", exif=exif(6)), 45).shape == (45, 15, 3)
    assert stored(encoded(Image.new("RGB", (3000, 1)), "PNG"), 16).shape == (1, 16, 3)


def test_nothing_but_pixels_is_stored() -> None:
    content = encoded(smooth(), "TIFF", icc_profile=b"profile" * 9, dpi=(72, 72), exif=exif(3))
    found = convert(content, None, 95).content
    chunks = {found[at : at + 4] for at in range(len(found)) if found[at : at + 4].isalpha()}
    assert not {b"iCCP", b"pHYs", b"eXIf", b"tEXt"} & chunks


def test_huge_ones_are_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion, "MAX_PIXELS", 1000)
    with pytest.raises(ValueError, match="has more than 1000 pixels: 300x120"):
        convert(encoded(smooth(0, 120, 300), "BMP"), None, 95)
    jpeg = encoded(smooth(0, 120, 300), "JPEG")
    assert decoded(convert(jpeg, 16, 95).content).shape == (6, 16, 3)  # its decoder can halve


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"RIFF1234WAVE", "is of no format that is read (JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, "),
        (b"%PDF-1.7 ...", "begins with '%PDF-1.7 ...'"),
        (b"BM", "cannot be decoded: as BMP: "),
        (encoded(smooth(), "TIFF")[:60], "cannot be decoded: as TIFF: "),
        (encoded(smooth(), "BMP")[:-9], "cannot be decoded: as BMP: "),
        (encoded(smooth(), "GIF")[:40], "cannot be decoded: as GIF: "),
        (encoded(smooth(), "AVIF")[:200], "cannot be decoded: as AVIF: "),
        (heic(smooth())[:300], "cannot be decoded: as HEIC: "),
        (encoded(smooth().convert("CMYK"), "JPEG")[:-200], "cannot be decoded: as JPEG: "),
        (encoded(smooth(), "PNG")[:30], "cannot be decoded: as PNG: "),
    ],
)  # fmt: skip
def test_what_is_broken_is_refused_in_one_line(content: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)) as raised:
        convert(content, None, 95)
    assert str(raised.value).isprintable()


_KINDS = {
    kind: encoded(smooth(0, 8, 10), kind)
    for kind in ("JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF", "AVIF")
}  # fmt: skip


@given(
    kind=st.sampled_from(sorted(_KINDS)), at=st.integers(0, 400), new=st.binary(max_size=4),
    end=st.integers(0, 2000), side=st.sampled_from([None, 16]),
)  # fmt: skip
def test_damage_anywhere_is_a_reason_or_a_picture(
    kind: str, at: int, new: bytes, end: int, side: int | None
) -> None:
    content = bytearray(_KINDS[kind])
    content[at : at + len(new)] = new
    with contextlib.suppress(ValueError):
        assert convert(bytes(content[:end]), side, 95).content


def test_a_png_that_lies_about_its_size_takes_no_memory() -> None:
    header = struct.pack(">IIBBBBB", 2**30, 2**30, 16, 2, 0, 0, 0)
    body = b"IHDR" + header
    content = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(
        ">I", zlib.crc32(body)
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"has more than|cannot be decoded"):
        convert(content, None, 95)
