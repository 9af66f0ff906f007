"""What a source offers to the packer: splits of items, still encoded."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

SplitName = Literal["train", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "test")


Polygon = NDArray[np.float32]
"""x and y by turns, in pixels; (2P,)."""


@dataclass(frozen=True)
class EncodedInstances:
    """The objects of one image.

    Attributes:
        boxes: x, y, width, height in pixels, as COCO writes them; (K, 4), float64.
        labels: Contiguous classes from 0; (K,), int64.
        areas: Pixels, as the source states them; (K,), float64.
        crowd: (K,), bool.
        codes: One RLE for each object, for the image's size.
        polygons: Those that each object's mask was made from; none where it was not, or where
            nobody has any.
    """

    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    areas: NDArray[np.float64]
    crowd: NDArray[np.bool_]
    codes: tuple[bytes, ...]
    polygons: tuple[tuple[Polygon, ...], ...] = ()


@dataclass(frozen=True)
class Item:
    """One image as the source has it.

    Attributes:
        name: What a person would look for in the source: a file, a row.
        image_id: Number of the image, unique in its split.
        image: An encoded file: JPEG, PNG or WebP.
        label: Class of the image, from 0.
        annotated: False for an image that serves pre-training only.
        size: (height, width) that the annotations are made for, if there are any.
        instances: Objects, if the source has them.
        semantic: PNG with one grey channel, 255 where ignored, if the source has it.
        converted: What was done to the file to make `image`, as `Converted.done` has it.
    """

    name: str
    image_id: int
    image: bytes
    label: int | None = None
    annotated: bool = True
    size: tuple[int, int] | None = None
    instances: EncodedInstances | None = None
    semantic: bytes | None = None
    converted: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rejected:
    """An image that cannot be used, and why.

    Attributes:
        name: Of the image, as in `Item`.
        reason: What is wrong, then, after a colon, the particulars of this image.
    """

    name: str
    reason: str


@dataclass(frozen=True)
class Unread:
    """An image that has yet to be read, by whichever thread gets to it.

    Attributes:
        name: Of the image, as in `Item`.
        read: Returns it, or why it cannot be used; raises nothing.
    """

    name: str
    read: Callable[[], Item | Rejected]


Entry = Item | Rejected | Unread


@dataclass(frozen=True)
class Split:
    """The images of one split.

    Attributes:
        count: How many, with those that will be rejected.
        items: Goes through them in order.
        rejected: Those of them that are known to be unusable before any is read.
        size: About how many bytes its files have; 0 if that is not known.
    """

    count: int
    items: Callable[[], Iterator[Entry]]
    rejected: tuple[Rejected, ...] = ()
    size: int = 0


@dataclass(frozen=True)
class Source:
    """A source that has been opened and found to be in order.

    Attributes:
        splits: Always train and test.
        licence: Under which terms the images may be used, or where that is written.
        classes: Names for `Item.label`; None: no labels.
        thing_classes: Names for instances; None: no instances.
        semantic_classes: Names for semantic maps; None: no maps.
        notes: What a reader of the results should know of the data, one sentence each.
    """

    splits: dict[SplitName, Split]
    licence: str
    classes: tuple[str, ...] | None = None
    thing_classes: tuple[str, ...] | None = None
    semantic_classes: tuple[str, ...] | None = None
    notes: tuple[str, ...] = field(default=())
