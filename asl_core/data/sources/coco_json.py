"""COCO's instances JSON: read, and all that it says checked, before any image is looked at.

What is damaged in one object, its box, area or mask, costs that object: it is left out, counted and
named. What says which image or class something belongs to, or what kind of object it is, must be
right in every entry: else the file is refused.
"""

import logging
import reprlib
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from asl_core.data.sources.coco_masks import OtherSizeError, UnusableError
from asl_core.data.sources.coco_objects import (
    CocoObject,
    far_from_masks,
    read_object,
)
from asl_core.data.sources.files import read_json
from asl_core.data.sources.source import EncodedInstances
from asl_core.errors import InputError
from asl_core.wording import counted

_logger = logging.getLogger(__name__)

_LARGEST_ID = 2**53
_LONGEST_SIDE, _MOST_PIXELS = 2**24, 2**31 - 1
"""Of an image: pycocotools counts in 32 bits, and in fifths of a pixel along a side."""

Entry = Mapping[str, Any]


@dataclass(frozen=True)
class CocoImage:
    """One image that the file lists, with its usable objects; labels are contiguous."""

    image_id: int
    file_name: str
    height: int
    width: int
    instances: EncodedInstances


@dataclass(frozen=True)
class CocoFile:
    """What an instances file says.

    Attributes:
        images: In the file's order.
        categories: Names by id, by increasing id.
        licences: Their names, sorted.
        notes: What was left out, and what looks wrong, a sentence each.
    """

    images: tuple[CocoImage, ...]
    categories: dict[int, str]
    licences: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass
class _Tally:
    """How often something was found, and where first."""

    found: dict[tuple[str, str], list[int]] = field(
        default_factory=dict[tuple[str, str], list[int]]
    )

    def add(self, what: str, annotation_id: int, reason: str = "") -> None:
        self.found.setdefault((what, reason), [0, annotation_id])[0] += 1

    def notes(self) -> list[str]:
        return [
            f"{what}: {count}, the first in annotation {first}{reason and f': {reason}'}"
            for (what, reason), (count, first) in self.found.items()
        ]


def read_instances(path: Path) -> CocoFile:
    """Read and check an instances file; what is left out is logged and noted.

    Raises:
        InputError: It is no instances file, an entry of it is damaged in what cannot be left out,
            or none of its objects can be used.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a COCO instances file; it holds no JSON object")
    images = _entries(path, content, "images", _image)
    categories = _entries(path, content, "categories", _category)
    annotations = _entries(path, content, "annotations", _annotation)
    _unique(path, "images", images, "file_name")
    _unique(path, "categories", categories, "name")
    _known(path, annotations, "category_id", categories)
    _known(path, annotations, "image_id", images)
    names = {entry["id"]: entry["name"] for entry in categories}
    tally = _Tally()
    objects = _objects(path, images, annotations, tally)
    labels = {category: label for label, category in enumerate(sorted(names))}
    notes = tuple(f"{path.name}: {note}." for note in tally.notes())
    for note in notes:
        _logger.warning("%s", note)
    return CocoFile(
        images=tuple(
            CocoImage(
                entry["id"], entry["file_name"], entry["height"], entry["width"],
                _encoded(objects[entry["id"]], labels),
            )
            for entry in images
        ),
        categories={category: names[category] for category in sorted(names)},
        licences=_licences(content.get("licenses")),
        notes=notes,
    )  # fmt: skip


def _entries(
    path: Path, content: Entry, kind: str, check: Callable[[str, Entry], None]
) -> list[dict[str, Any]]:
    """Return a list of the file whose entries are objects with ids of their own."""
    entries = content.get(kind)
    if not isinstance(entries, list):
        raise InputError(f"{path} has no list {kind!r}; it is not a COCO instances file")
    for number, entry in enumerate(entries):
        where = f"{path}: {kind}[{number}]"
        if not isinstance(entry, dict):
            raise InputError(f"{where} is {_shown(entry)}, not an object; restore the file")
        _integer(where, entry, "id", 0, _LARGEST_ID)
        check(where, entry)
    _unique(path, kind, entries, "id")
    return entries


def _image(where: str, entry: Entry) -> None:
    height, width = (_integer(where, entry, key, 1, _LONGEST_SIDE) for key in ("height", "width"))
    if height * width > _MOST_PIXELS:
        raise InputError(
            f"{where} has {width}x{height} pixels, more than an RLE can count; restore the file"
        )
    name = _text(where, entry, "file_name")
    if "/" in name or name in (".", ".."):
        raise InputError(
            f"{where}: file_name {_shown(name)} is not the plain name of a file; "
            "put the images into the one folder and name them without it"
        )


def _category(where: str, entry: Entry) -> None:
    _text(where, entry, "name")


def _annotation(where: str, entry: Entry) -> None:
    for key in ("image_id", "category_id"):
        _integer(where, entry, key, 0, _LARGEST_ID)
    crowd = entry.get("iscrowd", 0)
    if not isinstance(crowd, int) or crowd not in (0, 1):
        raise InputError(f"{where}: iscrowd is {_shown(crowd)}, neither 0 nor 1; restore the file")


def _integer(where: str, entry: Entry, key: str, least: int, most: int) -> int:
    value = _present(where, entry, key)
    if type(value) is not int:  # a bool is no number here
        raise InputError(f"{where}: {key} is {_shown(value)}, not an integer; restore the file")
    if not least <= value <= most:
        raise InputError(
            f"{where}: {key} is {_shown(value)}, not one of {least} to {most}; restore the file"
        )
    return value


def _text(where: str, entry: Entry, key: str) -> str:
    value = _present(where, entry, key)
    if not isinstance(value, str):
        raise InputError(f"{where}: {key} is {_shown(value)}, not a text; restore the file")
    if not _is_clean(value):
        raise InputError(
            f"{where}: {key} {_shown(value)} is empty or has characters that are none; "
            "restore the file"
        )
    return value


def _present(where: str, entry: Entry, key: str) -> Any:
    if key not in entry:
        raise InputError(f"{where} has no {key!r}; restore the file")
    return entry[key]


def _unique(path: Path, kind: str, entries: list[dict[str, Any]], key: str) -> None:
    first_at: dict[Any, int] = {}
    for number, entry in enumerate(entries):
        first = first_at.setdefault(entry[key], number)
        if first != number:
            raise InputError(
                f"{path}: {kind}[{first}] and {kind}[{number}] have the same {key} "
                f"{_shown(entry[key])}; restore the file"
            )


def _known(
    path: Path, annotations: list[dict[str, Any]], key: str, entries: list[dict[str, Any]]
) -> None:
    known = {entry["id"] for entry in entries}
    strays = [entry for entry in annotations if entry[key] not in known]
    if strays:
        raise InputError(
            f"{path}: {counted(len(strays), 'annotation')} with a {key} that is not listed, "
            f"the first is annotation {strays[0]['id']} with {strays[0][key]}; restore the file"
        )


def _objects(
    path: Path, images: list[dict[str, Any]], annotations: list[dict[str, Any]], tally: _Tally
) -> defaultdict[int, list[CocoObject]]:
    """Return the usable objects by image, in the file's order, and tally what is left out.

    Raises:
        InputError: There are annotations, but no usable one, or an RLE is for another image.
    """
    sizes = {entry["id"]: (entry["height"], entry["width"]) for entry in images}
    found: defaultdict[int, list[CocoObject]] = defaultdict(list)
    for number, annotation in enumerate(annotations):
        size = sizes[annotation["image_id"]]
        try:
            read = read_object(annotation, *size)
        except UnusableError as error:
            tally.add("objects left out", annotation["id"], str(error))
            continue
        except OtherSizeError:
            raise InputError(
                f"{path}: annotations[{number}] (id {annotation['id']}) has an RLE of size "
                f"{annotation['segmentation']['size']} for an image of {[*size]}; use masks of "
                "the images' own size"
            ) from None
        for reason in read.left_out:
            tally.add("polygons left out", annotation["id"], reason)
        found[annotation["image_id"]].append(read)
    if annotations and not found:
        raise InputError(
            f"{path}: none of its {len(annotations)} objects can be used ({tally.notes()[0]}); "
            "restore the file"
        )
    for of_image in found.values():
        for each in far_from_masks(of_image):
            tally.add("boxes far from their masks, kept as they are", each.annotation_id)
    return found


def _encoded(objects: list[CocoObject], labels: Mapping[int, int]) -> EncodedInstances:
    return EncodedInstances(
        boxes=np.array([each.box for each in objects], dtype=np.float64).reshape(-1, 4),
        labels=np.array([labels[each.category_id] for each in objects], dtype=np.int64),
        areas=np.array([each.area for each in objects], dtype=np.float64),
        crowd=np.array([each.crowd for each in objects], dtype=bool),
        codes=tuple(each.code for each in objects),
        polygons=tuple(each.polygons for each in objects),
    )


def _licences(licences: Any) -> tuple[str, ...]:
    """Return the names of the licences that have one; nothing hangs on them."""
    entries = licences if isinstance(licences, list) else []
    names = [entry.get("name") for entry in entries if isinstance(entry, dict)]
    return tuple(sorted({name for name in names if isinstance(name, str) and _is_clean(name)}))


def _is_clean(text: str) -> bool:
    """Say whether a text can stand in a line of a message and in a file; it may not be empty."""
    return bool(text) and not any(c < " " or "\ud800" <= c <= "\udfff" for c in text)


def _shown(value: Any) -> str:
    """Return a value as it may stand in a message of one line, shortened."""
    return reprlib.repr(value)
