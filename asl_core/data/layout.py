"""Names of the files of a packed dataset, and access to them at random.

    manifest.json            see asl_core.data.manifest
    SPLIT-00000.tar ...      images and semantic maps, about 1 GB each, uncompressed
    SPLIT-index.npz          one row per image: where it lies, its size, label, id
    SPLIT-instances.npz      boxes, labels, ...; only with instances
    SPLIT-masks.rle          the instances' run-length codes one after the other
    SPLIT-polygons.npz       which polygons an instance has; only where the source has any
    SPLIT-polygons.f32       x and y of their points, one polygon after the other
    train-regions.npz        where the maps of each image begin; only with regions
    train-regions.zlib       the images' maps one after the other, each compressed

Read with `os.pread`: one request for each image, at any offset, without a position that processes
would share. A memory map would read eight times the bytes from a cold disk.
"""

import os
import re
from pathlib import Path

import torch
from torch import Tensor

from asl_core.errors import InputError

INDEX = "{split}-index.npz"
INSTANCES = "{split}-instances.npz"
MASKS = "{split}-masks.rle"
POLYGONS = "{split}-polygons.npz"
POINTS = "{split}-polygons.f32"
REGIONS = "{split}-regions.npz"
REGION_MAPS = "{split}-regions.zlib"
SHARD = "{split}-{number:05d}.tar"

_OURS = re.compile(
    r"(train|test)-(\d{5}\.tar|index\.npz|instances\.npz|masks\.rle|polygons\.(npz|f32)|regions\.(npz|zlib))"
    r"|manifest\.json"
)


def clear(folder: Path) -> None:
    """Remove the files of a packed dataset, the manifest first; other files stay."""
    ours = [path for path in folder.iterdir() if _OURS.fullmatch(path.name)]
    for path in sorted(ours, key=lambda path: path.suffix != ".json"):
        path.unlink()


class RandomAccessFile:
    """A file read at any offset; opened at the first read, and anew in each unpickled copy."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def read(self, offset: int, size: int) -> Tensor:
        """Return `size` bytes from `offset` on, (size,), uint8.

        Raises:
            InputError: The file is missing or shorter than that.
        """
        buffer = torch.empty(size, dtype=torch.uint8)
        if self._read_into(buffer.numpy().data, offset) < size:
            raise InputError(f"{self.path} is truncated; prepare the dataset again")
        return buffer

    def _read_into(self, view: memoryview, offset: int) -> int:
        """Fill the view as far as the file goes; Linux reads at most 2 GiB per call."""
        if self._descriptor is None:
            try:
                self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                raise InputError(f"{self.path} does not exist; prepare the dataset again") from None
        done = 0
        while done < len(view):
            count = os.preadv(self._descriptor, [view[done:]], offset + done)
            if count == 0:
                break
            done += count
        return done

    def __getstate__(self) -> dict[str, object]:
        return {"path": self.path, "_descriptor": None}

    def __del__(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
