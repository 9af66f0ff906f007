"""Packing a source: every image is decoded once, and what cannot be used is listed."""

import dataclasses
import hashlib
import logging
import os
import re
import warnings
from array import array
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torchvision.io import ImageReadMode, decode_image
from tqdm import tqdm

from asl_core.data.exif import SIDEWAYS, UPRIGHT, orientation
from asl_core.data.image_header import check_header
from asl_core.data.manifest import Manifest
from asl_core.data.packing import SHARD_BYTES, SplitWriter
from asl_core.data.region_maps import encode_maps
from asl_core.data.rejections import refuse_too_many
from asl_core.data.segmenting import segment
from asl_core.data.slices import Counts, beginning_of_source
from asl_core.data.sources.catalogue import open_source
from asl_core.data.sources.selection import hold_out
from asl_core.data.sources.source import (
    SPLITS,
    Entry,
    Item,
    Rejected,
    Source,
    Split,
    SplitName,
    Unread,
)
from asl_core.data.target import written_whole
from asl_core.errors import InputError
from asl_core.recipes.datasets import Dataset, Regions, as_packed
from asl_core.recipes.undivided import Undivided
from asl_core.wording import counted

_logger = logging.getLogger(__name__)

_AHEAD = 8  # images that may wait for each thread: a bound on memory
_MAX_THREADS = 8
_SOURCE_LINE = re.compile(r"^\w+, \S+:\d+, ")  # "decode_image, /path/of/the/source.cpp:37, "

Checked = tuple[Item, int, int]
"""An item with the height and width that decoding gave."""


@dataclasses.dataclass
class _Packed:
    """What became of one split."""

    count: int = 0
    annotated: int = 0
    digest: str = ""
    rejected: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    turned: list[str] = dataclasses.field(default_factory=list)
    labels: set[int | None] = dataclasses.field(default_factory=set)
    contents: "array[int]" = dataclasses.field(default_factory=partial(array, "Q"))
    """A hash of each image's file, of 64 bits."""
    converted: Counter[str] = dataclasses.field(default_factory=Counter)
    """What was done to images -> to how many."""

    def add(self, item: Item) -> None:
        self.count += 1
        self.annotated += item.annotated
        self.labels.add(item.label)
        if item.size is not None and orientation(item.image) != UPRIGHT:
            self.turned.append(item.name)
        self.converted.update(item.converted)
        digest = hashlib.sha256(item.image).digest()
        self.contents.append(int.from_bytes(digest[:8], "little"))


def prepare(
    recipe: Dataset,
    data_root: Path,
    folder: Path,
    *,
    name: str,
    rejected_list: Path | None = None,
    shard_bytes: int = SHARD_BYTES,
    beginning: Counts | None = None,
) -> Manifest:
    """Pack what the recipe names into `folder` and return the manifest, which is written last.

    Args:
        recipe: The source.
        data_root: Folder from which relative paths are taken.
        folder: Target; files of an earlier or interrupted run are removed first.
        name: Name of the dataset in the project.
        rejected_list: Where the images that cannot be used are listed if they are too many;
            <folder>-rejected.txt beside it if absent.
        shard_bytes: Size at which a shard is closed.
        beginning: Only the first images of each split are packed, so many; absent: all.

    Raises:
        InputError: The source is missing or broken, a split has no usable image, its share of
            rejected images exceeds the recipe's max_rejected_share, or `folder` cannot be written
            or has no room. What was written is removed.
    """
    rejected_list = rejected_list or folder.with_name(f"{folder.name}-rejected.txt")
    source = open_source(recipe, data_root)
    if recipe.selection:
        source = hold_out(source, recipe.selection, name)
    if beginning is not None:
        source = beginning_of_source(source, beginning)
    for split in SPLITS:
        _check_split(source, split, recipe, f"{name} {split}", rejected_list)
    with (
        warnings.catch_warnings(),
        written_whole(folder, sum(source.splits[split].size for split in SPLITS)),
    ):
        # of EXIF entries and the like; what makes an image unusable is an error
        warnings.filterwarnings("ignore", module=r"PIL\.")
        packed: dict[SplitName, _Packed] = {
            split: _pack_split(source, split, recipe, folder, name, rejected_list, shard_bytes)
            for split in SPLITS
        }
        manifest = _manifest(source, recipe, name, packed)
        manifest.write(folder)
    rejected_list.unlink(missing_ok=True)  # of an earlier try
    return manifest


def _manifest(
    source: Source, recipe: Dataset, name: str, packed: dict[SplitName, _Packed]
) -> Manifest:
    notes = [
        *_notes(source.classes, packed), *source.notes, *_turned_notes(packed),
        *_converted_notes(packed),
    ]  # fmt: skip
    return Manifest(
        name=name,
        source=as_packed(recipe),
        licence=source.licence,
        classes=source.classes,
        thing_classes=source.thing_classes,
        semantic_classes=source.semantic_classes,
        mean=recipe.mean,
        std=recipe.std,
        counts={split: result.count for split, result in packed.items()},
        annotated={split: result.annotated for split, result in packed.items()},
        digests={split: result.digest for split, result in packed.items()},
        rejected={split: result.rejected for split, result in packed.items()},
        notes=(*notes, recipe.note) if recipe.note else tuple(notes),
    )


def _check_split(
    source: Source, name: SplitName, recipe: Dataset, title: str, rejected_list: Path
) -> None:
    """Refuse before the first image is read what can be known then."""
    split = source.splits[name]
    if not split.count:
        raise InputError(
            f"{title}: the source has no images; check its path and layout, or, where "
            "val_joins_training or holdout 0 leaves no test split, join it with a source that has "
            "one"
        )
    rejected = [(entry.name, entry.reason) for entry in split.rejected]
    total = _held_against(source, recipe, split.count, len(split.rejected))
    refuse_too_many(title, rejected, total, recipe.max_rejected_share, rejected_list)


def _held_against(source: Source, recipe: Dataset, total: int, rejected: int) -> int:
    """Return of how many images the rejected ones are a share.

    Of those of their split; where the splits are two parts of one source, of all: by chance, a
    small part can have many.
    """
    if isinstance(recipe, Undivided) and rejected < total:
        return sum(split.count for split in source.splits.values())
    return total


def _pack_split(
    source: Source,
    split: SplitName,
    recipe: Dataset,
    folder: Path,
    name: str,
    rejected_list: Path,
    shard_bytes: int,
) -> _Packed:
    result, title = _Packed(), f"{name} {split}"
    regions = recipe.regions if split == "train" else None
    with SplitWriter(
        folder,
        split,
        with_instances=source.thing_classes is not None,
        with_regions=regions is not None,
        shard_bytes=shard_bytes,
    ) as writer:
        for checked, maps in _with_progress(source.splits[split], title, regions):
            if isinstance(checked, Rejected):
                result.rejected.append((checked.name, checked.reason))
                continue
            item, height, width = checked
            writer.add(item, height, width, maps)
            result.add(item)
        total, rejected = result.count + len(result.rejected), result.rejected
        if rejected:
            first = ": ".join(rejected[0])
            _logger.warning(
                "%s: %d of %d images rejected, the first %s", title, len(rejected), total, first
            )
        total = _held_against(source, recipe, total, len(rejected))
        refuse_too_many(title, rejected, total, recipe.max_rejected_share, rejected_list)
        result.digest = writer.finish()
    _logger.info("%s: %s, %d rejected", title, counted(result.count, "image"), len(result.rejected))
    return result


def _notes(classes: tuple[str, ...] | None, packed: dict[SplitName, _Packed]) -> Iterator[str]:
    """Yield what only the packed images tell: classes without any, and images in both splits."""
    for split, result in packed.items():
        absent = [c for label, c in enumerate(classes or ()) if label not in result.labels]
        if absent:
            total = len(classes or ())
            yield f"{len(absent)} of {total} classes have no {split} image, the first {absent[0]}."
    tested = packed["test"].contents
    shared = np.isin(tested, packed["train"].contents).sum()
    if shared:
        yield f"{shared} of {len(tested)} test images are training images too, byte for byte."


def _turned_notes(packed: Mapping[SplitName, _Packed]) -> list[str]:
    """Say which annotations may be for a picture that is held in another way than it is read."""
    notes = [
        f"{len(result.turned)} annotated {split} images have an EXIF orientation, which is not "
        f"applied: their annotations are taken to be for the pixels as stored. The first is "
        f"{result.turned[0]}."
        for split, result in packed.items()
        if result.turned
    ]
    for note in notes:
        _logger.warning("%s", note)
    return notes


def _converted_notes(packed: Mapping[SplitName, _Packed]) -> list[str]:
    """Say what is not stored as the source has it."""
    done: Counter[str] = Counter()
    for result in packed.values():
        done += result.converted
    said = ", ".join(f"{count} {what}" for what, count in sorted(done.items()))
    return [f"Images converted as they were packed: {said}."] if done else []


def _with_progress(
    split: Split, title: str, regions: Regions | None
) -> Iterator[tuple[Checked | Rejected, bytes]]:
    """Yield the checked items and their maps in order; a bar on a terminal, nothing in a log."""
    with tqdm(total=split.count, desc=title, unit="image", disable=None) as bar:
        for checked in _decoded(split.items(), regions):
            yield checked
            bar.update()


def _decoded(
    items: Iterator[Entry], regions: Regions | None
) -> Iterator[tuple[Checked | Rejected, bytes]]:
    """Decode on all cores, in order.

    torchvision's decoders release the GIL, and so does the segmentation, which takes a hundred
    times as long: it may have more cores.
    """
    cores = len(os.sched_getaffinity(0))
    threads = min(cores, _MAX_THREADS) if regions is None else cores
    with ThreadPoolExecutor(threads) as pool:
        ahead: deque[Future[tuple[Checked | Rejected, bytes]]] = deque()
        for item in items:
            ahead.append(pool.submit(_checked_with_maps, item, regions))
            if len(ahead) >= _AHEAD * threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _checked_with_maps(item: Entry, regions: Regions | None) -> tuple[Checked | Rejected, bytes]:
    """Check the item, and segment it if asked; else its maps are no bytes."""
    checked = check_item(item)
    if regions is None or isinstance(checked, Rejected):
        return checked, b""
    encoded = torch.frombuffer(bytearray(checked[0].image), dtype=torch.uint8)
    image = decode_image(encoded, ImageReadMode.RGB)  # again, which is nothing to what follows
    return checked, encode_maps(segment(image, regions))


def check_item(item: Entry) -> Checked | Rejected:
    """Decode the item as training will, and compare its size with that of its annotations."""
    if isinstance(item, Unread):
        item = item.read()
    if isinstance(item, Rejected):
        return item
    if not item.image:
        return Rejected(item.name, "the file is empty")
    try:
        check_header(item.image)
    except ValueError as error:
        return Rejected(item.name, str(error))
    try:
        encoded = torch.frombuffer(bytearray(item.image), dtype=torch.uint8)
        image = decode_image(encoded, ImageReadMode.RGB)
    except (RuntimeError, ValueError) as error:  # whatever the decoders of torchvision find
        reason = _SOURCE_LINE.sub("", str(error).splitlines()[0])
        return Rejected(item.name, f"cannot be decoded: {reason}")
    if image.ndim != 3 or image.dtype != torch.uint8:
        return Rejected(item.name, f"is no 8-bit still image: {list(image.shape)} {image.dtype}")
    height, width = image.shape[1:]
    if item.size is not None and item.size != (height, width):
        return Rejected(item.name, _other_size(item, item.size, (height, width)))
    return item, height, width


def _other_size(item: Item, annotated: tuple[int, int], stored: tuple[int, int]) -> str:
    """Say that annotations are for another size, and whether EXIF's orientation explains it."""
    reason = (
        f"is {stored[1]}x{stored[0]}, but its annotations are for {annotated[1]}x{annotated[0]}"
    )
    turn = orientation(item.image)
    if annotated == stored[::-1] and turn in SIDEWAYS:
        reason += (
            f": its EXIF orientation {turn} swaps the sides, and pixels are read as stored; "
            "rewrite it upright, for example with ImageMagick's mogrify -auto-orient"
        )
    return reason
