"""Small sources on disk, and what is expected of packing them."""

import io
import os
import shutil
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from asl_core.data.prepare import prepare
from asl_core.data.shards import PackedDataset
from asl_core.errors import InputError


@cache
def picture(seed: int, height: int = 9, width: int = 13, kind: str = "JPEG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return encoded(Image.fromarray(pixels), kind)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format=kind, **options)
    return file.getvalue()


def png(width: int, height: int, rows: bytes, *, bits: int = 8, colour: int = 2) -> bytes:
    """Return a PNG with these lines, whether or not they are what its header claims."""

    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + checksum

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    palette = [(b"PLTE", bytes(3 * 2**bits))] if colour == 3 else []
    chunks = [(b"IHDR", header), *palette, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)


def put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


Change = Callable[[Path], None]
"""Makes an input of a source that is in order."""


def add(name: str | bytes, content: bytes | None = None) -> Change:
    """Put a file more, or another one; an image where the content is not given."""
    return lambda folder: put(
        folder / os.fsdecode(name), picture(50) if content is None else content
    )


def remove(name: str) -> Change:
    def change(folder: Path) -> None:
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
        else:
            (folder / name).unlink()

    return change


def link(name: str, target: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(target)

    return change


def make_folder(name: str) -> Change:
    return lambda folder: (folder / name).mkdir(parents=True)


def all_of(*changes: Change) -> Change:
    def change(folder: Path) -> None:
        for each in changes:
            each(folder)

    return change


@dataclass(frozen=True)
class Accepted:
    """What a source gives.

    Attributes:
        train: Labels of the training images, in order; None where they have none.
        test: Of the test images.
        classes: Names.
        rejected: Each image that is left out, in training and then in test -> part of the reason.
        notes: Part of each note, in order; there are no others.
    """

    train: Sequence[int | None]
    test: Sequence[int | None]
    classes: Sequence[str]
    rejected: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Refused:
    """Parts of the one line with which a source is refused."""

    parts: tuple[str, ...]

    def __init__(self, *parts: str) -> None:
        object.__setattr__(self, "parts", parts)


Case = tuple[str, Change, Accepted | Refused]
"""Name, what is done to a source that is in order, and what is expected then."""


def each(cases: Sequence[Case]) -> pytest.MarkDecorator:
    """Run a test once for each case."""
    names = [name for name, _, _ in cases]
    return pytest.mark.parametrize(("change", "expected"), [case[1:] for case in cases], ids=names)


def check(recipe: Any, folder: Path, target: Path, expected: Accepted | Refused) -> None:
    """Pack the source and compare; what is refused leaves nothing behind."""
    if isinstance(expected, Refused):
        with pytest.raises(InputError) as raised:
            prepare(recipe, folder, target, name="toy")
        message = str(raised.value)
        for part in expected.parts:
            assert part in message
        assert message.isprintable()
        assert not target.exists() or not list(target.iterdir())
        return
    manifest = prepare(recipe, folder, target, name="toy")
    rejected = dict(manifest.rejected["train"] + manifest.rejected["test"])
    assert list(rejected) == list(expected.rejected)
    for name, part in expected.rejected.items():
        assert part in rejected[name]
    assert len(manifest.notes) == len(expected.notes), manifest.notes
    for note, part in zip(manifest.notes, expected.notes, strict=True):
        assert part in note
    assert tuple(manifest.classes or manifest.semantic_classes or ()) == tuple(expected.classes)
    for split, labels in (("train", expected.train), ("test", expected.test)):
        assert [sample.label for sample in PackedDataset(target, split)] == list(labels)
