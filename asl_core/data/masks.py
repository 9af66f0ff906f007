"""Instance masks as COCO's run-length codes (RLE): columns first, compressed to ASCII bytes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def coco_mask() -> Any:
    """Return the library of codes, which only data with instances need to be installed for.

    Its type stubs know neither lists of codes nor polygons.
    """
    from pycocotools import mask

    return mask


def encode_masks(masks: NDArray[np.bool_]) -> tuple[bytes, ...]:
    """Return one RLE per mask; masks: (K, H, W)."""
    if not len(masks):
        return ()
    stacked = np.asfortranarray(masks.transpose(1, 2, 0), dtype=np.uint8)  # (H, W, K)
    return tuple(code["counts"] for code in coco_mask().encode(stacked))


def decode_masks(codes: Sequence[bytes], height: int, width: int) -> Tensor:
    """Return masks, (K, H, W) bool, of K codes for an image of this size."""
    if not codes:
        return torch.zeros((0, height, width), dtype=torch.bool)
    # (H, W, K), columns first in memory: its transpose is contiguous, and 0 and 1 are bool's bytes
    stacked = coco_mask().decode([as_coco(code, height, width) for code in codes])
    return torch.from_numpy(stacked.T).view(torch.bool).transpose(1, 2).contiguous()


def rasterise(polygons: Sequence[NDArray[np.float32]], height: int, width: int) -> Tensor:
    """Return the pixels that polygons cover together, (H, W) bool, as COCO's library draws them.

    Args:
        polygons: One or more; x and y by turns in pixels, also outside of the image.
        height: Of the image.
        width: Likewise.
    """
    parts = [polygon.astype(np.float64).tolist() for polygon in polygons]
    code = coco_mask().merge(coco_mask().frPyObjects(parts, height, width))
    return torch.from_numpy(np.ascontiguousarray(coco_mask().decode(code))).view(torch.bool)


def as_coco(code: bytes, height: int, width: int) -> dict[str, Any]:
    """Return the mapping that pycocotools and faster-coco-eval take for an RLE."""
    return {"size": [height, width], "counts": code}


def tight_boxes(masks: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return x1, y1, x2, y2 around the True pixels, x2 and y2 exclusive; (K, H, W) -> (K, 4).

    Each mask must have at least one True pixel.
    """
    height, width = masks.shape[1:]
    columns: NDArray[np.bool_] = np.any(masks, axis=1)  # (K, W)
    rows: NDArray[np.bool_] = np.any(masks, axis=2)  # (K, H)
    return np.stack(
        [
            columns.argmax(axis=1),
            rows.argmax(axis=1),
            width - columns[:, ::-1].argmax(axis=1),
            height - rows[:, ::-1].argmax(axis=1),
        ],
        axis=1,
    ).astype(np.int64)
