"""COCO's `segmentation` of one object, checked before pycocotools reads it.

pycocotools trusts its input: runs that do not add up to the image leave memory uninitialised, and
a polygon takes memory in proportion to the length of its outline, wherever that lies.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from asl_core.data.masks import coco_mask
from asl_core.data.sources.source import Polygon

LONGEST_OUTLINE = 2**20
"""Of a polygon, in pixels. One around every second pixel of a 1000 x 1000 image is this long;
rasterising it takes some 120 bytes a pixel of outline."""

_MORE, _SIGN, _GROUP = 0x20, 0x10, 0x1F  # bits of a character of a compressed RLE
_MOST_GROUPS = 7  # characters of one run: 35 bits, where 32 is the most that pycocotools writes


class UnusableError(ValueError):
    """Raised for an object, or a polygon of it, that cannot be used; says why in a few words."""


class OtherSizeError(ValueError):
    """Raised for an RLE that is made for another size than the image's."""


class Segmentation(NamedTuple):
    """A usable `segmentation`.

    Attributes:
        code: Compressed RLE.
        left_out: Why polygons of it were left out.
        polygons: Those that were not, x and y by turns; none where it is an RLE.
    """

    code: bytes
    left_out: tuple[str, ...]
    polygons: tuple[Polygon, ...]


def read_segmentation(segmentation: Any, height: int, width: int) -> Segmentation:
    """Read a `segmentation`: a list of polygons, or an RLE in either of its two forms.

    Raises:
        UnusableError: Nothing of it can be used, or it has no pixel in the image.
        OtherSizeError: It is an RLE for another size.
    """
    left_out: tuple[str, ...] = ()
    polygons: list[list[float]] = []
    if isinstance(segmentation, list) and segmentation:
        polygons, left_out = _usable_polygons(segmentation, height, width)
        code = coco_mask().merge(coco_mask().frPyObjects(polygons, height, width))
    elif isinstance(segmentation, dict) and "counts" in segmentation:
        _check_size(segmentation.get("size"), height, width)
        runs = _runs(segmentation["counts"], height * width)
        code = coco_mask().frPyObjects({"size": [height, width], "counts": runs}, height, width)
    else:
        raise UnusableError("its segmentation is neither polygons nor an RLE")
    if not coco_mask().area(code):
        raise UnusableError("its mask has no pixel")
    kept = tuple(np.array(polygon, dtype=np.float32) for polygon in polygons)
    return Segmentation(code["counts"], left_out, kept)


def _usable_polygons(
    parts: list[Any], height: int, width: int
) -> tuple[list[list[float]], tuple[str, ...]]:
    """Return the polygons that can be rasterised, and what is wrong with each of the others."""
    usable, left_out = [], []
    for part in parts:
        fault = _fault_of_polygon(part, height, width)
        if fault is None:
            usable.append(part)
        else:
            left_out.append(fault)
    if not usable:
        raise UnusableError(f"no usable polygon ({left_out[0]})")
    return usable, tuple(left_out)


def _fault_of_polygon(part: Any, height: int, width: int) -> str | None:
    """Return what is wrong with a polygon, None where nothing is.

    detectron2 leaves out what has fewer than three points or half a point; pycocotools cannot
    read the others.
    """
    if not isinstance(part, list):
        return "no list of coordinates"
    if len(part) < 6:
        return "fewer than three points"
    if len(part) % 2:
        return "an odd number of coordinates"
    if not all(map(is_number, part)):
        return "a coordinate that is no finite number"
    points = np.array(part, dtype=np.float64).reshape(-1, 2)  # (P, 2): x, y
    least, most = points.min(axis=0), points.max(axis=0)
    if not ((least < (width, height)) & (most > 0)).all():
        return "outside of the image"
    with np.errstate(over="ignore"):
        steps = np.abs(points - np.roll(points, 1, axis=0)).max(axis=1)
        if steps.sum() > LONGEST_OUTLINE:
            return f"an outline of more than {LONGEST_OUTLINE} pixels"
    return None


def is_number(value: Any) -> bool:
    """Say whether JSON's value is a finite number; true and false are none."""
    if type(value) is int:
        return abs(value) < 2**63
    return type(value) is float and math.isfinite(value)


def _check_size(size: Any, height: int, width: int) -> None:
    if not (isinstance(size, list) and len(size) == 2 and all(type(side) is int for side in size)):
        raise UnusableError("its RLE has no size of two whole numbers")
    if size != [height, width]:
        raise OtherSizeError


def _runs(counts: Any, pixels: int) -> list[int]:
    """Return the lengths of the runs, alternately of zeros and ones, none but the first empty.

    Raises:
        UnusableError: They are no runs, or do not add up to so many pixels.
    """
    if isinstance(counts, list):
        if not all(type(count) is int and 0 <= count <= pixels for count in counts):
            raise UnusableError("a run of its RLE is no whole number, or longer than the image")
        runs = counts
    elif isinstance(counts, str):
        runs = _decompress(counts)
    else:
        raise UnusableError("the counts of its RLE are neither a list nor a string")
    if sum(runs) != pixels:
        raise UnusableError("the runs of its RLE do not add up to the image")
    return list(_merged(runs))


def _decompress(text: str) -> list[int]:
    """Return the runs in a compressed RLE.

    A run is written in groups of five bits, the lowest first, one character from "0" on for each;
    the bit above them says that more follow, and the highest of the last one is the sign. From the
    fourth on the difference to the last but one is written.
    """
    encoded = text.encode("utf-8", "surrogatepass")
    characters = np.frombuffer(encoded, dtype=np.uint8).astype(np.int64) - ord("0")
    if not len(characters) or characters.min() < 0 or characters.max() >= 2 * _MORE:
        raise UnusableError("its RLE has characters that no RLE has")
    ends = np.flatnonzero(characters & _MORE == 0)
    starts = np.concatenate([[0], ends[:-1] + 1]).astype(np.int64)
    lengths = ends - starts + 1  # (R,), characters of each run
    if not len(ends) or ends[-1] != len(characters) - 1 or lengths.max() > _MOST_GROUPS:
        raise UnusableError("its RLE is cut off")
    shifts = 5 * (np.arange(len(characters)) - np.repeat(starts, lengths))
    written = np.add.reduceat((characters & _GROUP) << shifts, starts)  # (R,)
    written -= np.where(characters[ends] & _SIGN, 1 << (5 * lengths), 0)
    runs: NDArray[np.int64] = written
    runs[1::2], runs[2::2] = np.cumsum(written[1::2]), np.cumsum(written[2::2])
    if runs.min() < 0:
        raise UnusableError("a run of its RLE is negative")
    return runs.tolist()


def _merged(runs: list[int]) -> Iterator[int]:
    """Yield the runs that the same mask has without empty ones after the first."""
    value, total = 0, 0  # of the run that is being put together
    for place, run in enumerate(runs):
        if run and place % 2 != value:
            yield total
            value, total = place % 2, 0
        total += run
    yield total
