"""Tar files as WebDataset has them, read by offset.

The package `webdataset` reads streams: it would have to go through every file once for the digests
and once more for each image of another place in the order. So headers are read by the standard
library; what names mean is its convention.
"""

import json
import os
import tarfile
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from asl_core.data.sources.files import broken_link, counted, shown
from asl_core.data.sources.listing import SYSTEM_FOLDERS, is_image_name
from asl_core.data.sources.source import Source
from asl_core.data.sources.undivided import MAX_FILE_BYTES, Found, divide, numbered
from asl_core.errors import InputError
from asl_core.recipes.undivided import WebDataset

_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")
"""How gzip, bzip2, xz and zstd begin."""


class _Member(NamedTuple):
    """A file in a tar file.

    Attributes:
        name: Its path there.
        offset: Where its bytes begin; -1 for what is no file.
        size: How many there are.
    """

    name: str
    offset: int
    size: int


@dataclass
class _Images:
    """Images in all tar files, one after the other."""

    tars: Sequence[Path]
    names: list[str] = field(default_factory=list)
    tar: "array[int]" = field(default_factory=lambda: array("L"))
    offset: "array[int]" = field(default_factory=lambda: array("q"))
    size: "array[int]" = field(default_factory=lambda: array("Q"))
    labels: list[str | None] = field(default_factory=list)
    problems: dict[int, str] = field(default_factory=dict)
    without: list[str] = field(default_factory=list)
    """Samples without an image."""

    def name(self, position: int) -> str:
        return shown(f"{self.tars[self.tar[position]].name}/{self.names[position]}")

    def read(self, position: int) -> bytes:
        member = _Member("", self.offset[position], self.size[position])
        return _read_member(self.tars[self.tar[position]], member)


def open_webdataset(recipe: WebDataset, data_root: Path) -> Source:
    """Return the source; all images are read once, to divide them by their content.

    Raises:
        InputError: A tar file is missing, compressed, or cut off, or has a sample with several
            images, or there is no image.
    """
    tars = recipe.needed(data_root)
    images = _Images(tars)
    for number, path in enumerate(tqdm(tars, desc="tar files", unit="file", disable=None)):
        _add(recipe, images, number, path)
    classes = None
    labels = np.full(len(images.names), -1, dtype=np.int64)
    if recipe.labelled:
        labels, classes = numbered(images.labels)
    notes = ()
    if images.without:
        one, many = "sample without an image was left out", "samples without an image were left out"
        samples = counted(len(images.without), one, many)
        notes = (f"{samples}, the first {shown(images.without[0])}.",)
    found = Found(
        count=len(images.names),
        name=images.name,
        read=images.read,
        labels=labels,
        problems=images.problems,
        size=sum(images.size),
        notes=notes,
    )
    return divide(recipe, found, classes, f"webdataset {', '.join(map(shown, recipe.paths))}")


def _add(recipe: WebDataset, images: _Images, number: int, path: Path) -> None:
    """Add the images of one tar file."""
    for key, parts in _samples(path).items():
        ours = _images_of(recipe, path, key, parts)
        if ours is None:
            images.without.append(f"{path.name}/{key}")
            continue
        position = len(images.names)
        images.names.append(ours.name)
        images.tar.append(number)
        images.offset.append(max(ours.offset, 0))
        images.size.append(ours.size)
        label, problem = _label(recipe, path, parts)
        images.labels.append(label)
        if ours.offset < 0:
            problem = "is no file, but a link in the tar file"
        elif ours.size > MAX_FILE_BYTES:
            problem = f"has more than {MAX_FILE_BYTES} bytes: {ours.size}"
        if problem:
            images.problems[position] = problem


def _samples(path: Path) -> dict[str, dict[str, _Member]]:
    """Return what stands before the first dot of a name -> what stands after it -> the file."""
    samples: dict[str, dict[str, _Member]] = {}
    for member in _members(path):
        folder, _, name = member.name.rpartition("/")
        system = SYSTEM_FOLDERS.intersection(folder.split("/"))
        stem, dot, ending = name.partition(".")
        if system or not stem or not dot:  # hidden, or of no kind
            continue
        parts = samples.setdefault(f"{folder}/{stem}" if folder else stem, {})
        if parts.setdefault(ending.lower(), member) is not member:
            raise InputError(
                f"{shown(path)} has '{shown(member.name)}' twice; write the tar file again"
            )
    return samples


def _members(path: Path) -> Iterator[_Member]:
    """Yield all that is no folder.

    Raises:
        InputError: The file is missing, no tar file, compressed or damaged.
    """
    _check_file(path)
    done = ""
    try:
        with tarfile.open(path, "r:", encoding="utf-8", errors="surrogateescape") as file:
            for member in file:
                if member.isdir():
                    continue
                done = member.name
                plain = member.isreg() and not member.issparse()
                name = member.name.removeprefix("./")
                yield _Member(name, member.offset_data if plain else -1, member.size)
            end = file.offset
        _check_end(path, end, done)
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        after = f" after '{shown(done)}'" if done else ""
        raise InputError(
            f"{shown(path)} is no tar file, or damaged or cut off{after} ({error}); fetch it again"
        ) from error


def _check_end(path: Path, end: int, done: str) -> None:
    """Refuse a file without the mark of its end, where the reader stops and says nothing.

    Raises:
        InputError: It is cut off, or goes on after the mark, as files do that were joined.
    """
    with path.open("rb") as file:
        file.seek(end)
        block = file.read(tarfile.BLOCKSIZE)
        if len(block) < tarfile.BLOCKSIZE or any(block):
            raise InputError(
                f"{shown(path)} is damaged or cut off after '{shown(done)}'; fetch it again"
            )
        while block := file.read(2**20):
            if any(block):
                raise InputError(
                    f"{shown(path)} goes on after the mark of its end, behind '{shown(done)}'; tar "
                    "files cannot be joined by cat: keep them apart"
                )


def _check_file(path: Path) -> None:
    if gone := broken_link(path):
        raise InputError(f"{shown(path)} is {gone}; restore it")
    if path.is_dir():
        raise InputError(f"{shown(path)} is a folder; name the tar files in it: {path.name}/*.tar")
    try:
        with path.open("rb") as file:
            start = file.read(6)
    except FileNotFoundError:
        raise InputError(f"{shown(path)} does not exist; correct path") from None
    except OSError as error:
        raise InputError(f"{shown(path)} cannot be read: {error.strerror or error}") from error
    if start.startswith(_COMPRESSED):
        raise InputError(
            f"{shown(path)} is compressed, and images in it cannot be read by their place; "
            "uncompress it (images hardly take more room so)"
        )


def _images_of(
    recipe: WebDataset, path: Path, key: str, parts: Mapping[str, _Member]
) -> _Member | None:
    """Return the image of a sample; None if it has none."""
    if recipe.image is not None:
        return parts.get(recipe.image.lstrip(".").lower())
    found = [member for member in parts.values() if is_image_name(member.name)]
    if len(found) > 1:
        raise InputError(
            f"{shown(path)}: sample '{shown(key)}' has several images, '{shown(found[0].name)}' "
            f"and '{shown(found[1].name)}'; set image to what follows the first dot of one of them"
        )
    return found[0] if found else None


def _label(
    recipe: WebDataset, path: Path, parts: Mapping[str, _Member]
) -> tuple[str | None, str | None]:
    """Return the label of a sample, if it has one, and what is wrong with it."""
    member = None if recipe.labels == "none" else parts.get(recipe.labels)
    if member is None or member.offset < 0:
        return None, None
    try:
        text = _read_member(path, member).decode("utf-8-sig")
        value: Any = json.loads(text) if recipe.labels == "json" else text.strip()
    except (ValueError, RecursionError, OSError) as error:
        return None, f"its {recipe.labels} cannot be read: {error}"
    if isinstance(value, dict):
        value = value.get(recipe.label_field)
    if value is None or value == "":
        return None, None
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None, f"its {recipe.labels} has a label that is neither a number nor a text: {value}"
    return (None if isinstance(value, int) and value < 0 else str(value)), None


def _read_member(path: Path, member: _Member) -> bytes:
    """Return the bytes of a file in a tar file.

    Raises:
        OSError: The tar file cannot be read.
        ValueError: It ends before them.
    """
    with path.open("rb") as file:
        content = os.pread(file.fileno(), member.size, member.offset)
    if len(content) < member.size:
        raise ValueError(f"the tar file ends in it: {len(content)} of {member.size} bytes")
    return content
