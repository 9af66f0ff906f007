"""One object of a COCO file: its box, area and mask, checked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asl_core.data.masks import as_coco, coco_mask
from asl_core.data.sources.coco_masks import UnusableError, is_number, read_segmentation
from asl_core.data.sources.source import Polygon

_FARTHEST = 2**24
"""Of a box's edges from the origin, in pixels: the last whole number that float32 has."""
_SHORTEST = 1e-5
"""Pixels: detectron2 takes a box for empty whose side is not longer."""
_LARGEST_AREA = 1e10
"""COCO's evaluation counts no object that is larger."""
_LEAST_OVERLAP = 0.5
"""Intersection over union of a box with that around its mask, each a pixel wider on all sides: a
box that overlaps less than this is far from its mask."""


@dataclass(frozen=True)
class CocoObject:
    """One usable object.

    Attributes:
        annotation_id: The file's number of it.
        category_id: The file's number of its class.
        box: x, y, width, height in pixels.
        area: In pixels, as the file states it.
        crowd: Whether it is a region of many objects.
        code: RLE of its mask.
        size: Height and width of its image.
        left_out: Why polygons of its mask are missing.
        polygons: That its mask was made from, if any.
    """

    annotation_id: int
    category_id: int
    box: tuple[float, float, float, float]
    area: float
    crowd: bool
    code: bytes
    size: tuple[int, int]
    left_out: tuple[str, ...]
    polygons: tuple[Polygon, ...]


def read_object(annotation: Mapping[str, Any], height: int, width: int) -> CocoObject:
    """Return the object of an annotation whose ids have been checked.

    Raises:
        UnusableError: Its box, area or mask is damaged.
        OtherSizeError: Its RLE is for another size than the image's.
    """
    code, left_out, polygons = read_segmentation(annotation.get("segmentation"), height, width)
    return CocoObject(
        annotation_id=annotation["id"],
        category_id=annotation["category_id"],
        box=_box(annotation.get("bbox")),
        area=_area(annotation.get("area")),
        crowd=bool(annotation.get("iscrowd", 0)),
        code=code,
        size=(height, width),
        left_out=left_out,
        polygons=polygons,
    )


def _box(value: Any) -> tuple[float, float, float, float]:
    if not (isinstance(value, list) and len(value) == 4 and all(map(is_number, value))):
        raise UnusableError("its bbox is not four finite numbers")
    x, y, width, height = map(float, value)
    if min(width, height) <= _SHORTEST:
        raise UnusableError("a side of its bbox is not positive")
    if max(abs(x), abs(y), abs(x + width), abs(y + height)) > _FARTHEST:
        raise UnusableError("its bbox lies out of all bounds")
    return x, y, width, height


def _area(value: Any) -> float:
    if not is_number(value) or not 0 <= value <= _LARGEST_AREA:
        raise UnusableError(f"its area is no number from 0 to {_LARGEST_AREA:g}")
    return float(value)


def far_from_masks(objects: Sequence[CocoObject]) -> list[CocoObject]:
    """Return the objects of an image whose boxes are not around their masks."""
    codes = [as_coco(each.code, *each.size) for each in objects]
    stated = np.array([each.box for each in objects], dtype=np.float64)  # (K, 4): x, y, w, h
    overlaps = _overlaps(_widened(stated), _widened(coco_mask().toBbox(codes)))
    return [each for each, iou in zip(objects, overlaps, strict=True) if iou < _LEAST_OVERLAP]


def _widened(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return x1, y1, x2, y2 of boxes that are a pixel wider on all sides; (K, 4) -> (K, 4)."""
    return np.concatenate([boxes[:, :2] - 1, boxes[:, :2] + boxes[:, 2:] + 1], axis=1)


def _overlaps(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the intersection over union of each pair of boxes, both (K, 4), (K,)."""
    least, most = np.maximum(one[:, :2], other[:, :2]), np.minimum(one[:, 2:], other[:, 2:])
    both = (most - least).clip(min=0).prod(axis=1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (one, other)]
    return both / (areas[0] + areas[1] - both)
