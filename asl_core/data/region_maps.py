"""Maps of segments of an image: packed, read, and drawn from.

A map gives every pixel the number of its segment; an image has one map for each scale.
"""

import zlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def encode_maps(maps: NDArray[np.integer]) -> bytes:
    """Return maps as compressed bytes, little-endian; `decode_maps` undoes it."""
    return zlib.compress(maps.astype(maps.dtype.newbyteorder("<")).tobytes())


def decode_maps(code: bytes, scales: int, height: int, width: int) -> Tensor:
    """Return the maps of `encode_maps`.

    Shape:
        - Output: (scales, H, W); uint8, or int32 where there are more numbers.

    Raises:
        ValueError: These are not the bytes of so many maps of this size.
    """
    try:
        values = zlib.decompress(code)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    size, rest = divmod(len(values), scales * height * width)
    if rest or size not in (1, 2, 4):
        raise ValueError(f"{len(values)} bytes for {scales} maps of {height} x {width}")
    maps = np.frombuffer(values, np.dtype(f"<u{size}")).reshape(scales, height, width)
    return torch.from_numpy(maps.astype(np.uint8 if size == 1 else np.int32))


def draw_regions(maps: Tensor, count: int) -> Tensor:
    """Draw segments of all maps together, without repetition as far as there are enough.

    Where there are fewer, each is there so often that they suffice, before the draw. From torch's
    global generator, which the loader seeds for each sample.

    Source: R-MAE, `pretrain/dataset/pretrain.py`, `region_sample_type: random`.

    Shape:
        - maps: (K, H, W), integers. Output: (count, H, W), bool, True inside of a segment.
    """
    segments = [(each, number) for each in maps for number in each.unique()]
    copies = -(-count // len(segments))
    drawn = torch.randperm(len(segments) * copies)[:count] % len(segments)
    chosen = [segments[position] for position in drawn.tolist()]
    return torch.stack([each == number for each, number in chosen])
