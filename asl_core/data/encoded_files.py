"""The image files inside a packed dataset, as they were packed."""

from pathlib import Path

import numpy as np
from torch import Tensor

from asl_core.data import layout


class EncodedFiles:
    """The encoded images of one split, read on request from any thread.

    Args:
        folder: Of a packed dataset that `PackedDataset` opens.
        split: "train" or "test".
    """

    def __init__(self, folder: Path, split: str) -> None:
        with np.load(folder / layout.INDEX.format(split=split)) as index:
            self._shard, self._offset, self._size = (
                index[name] for name in ("shard", "offset", "size")
            )
        self._files = [
            layout.RandomAccessFile(folder / layout.SHARD.format(split=split, number=number))
            for number in range(int(self._shard.max()) + 1)
        ]
        for file in self._files:
            file.read(0, 0)  # opened once, before threads are at it

    def __len__(self) -> int:
        return len(self._shard)

    def read(self, index: int) -> Tensor:
        """Return the bytes of an image's file, (size,), uint8."""
        file = self._files[self._shard[index]]
        return file.read(int(self._offset[index]), int(self._size[index]))
