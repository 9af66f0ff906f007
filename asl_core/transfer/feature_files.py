"""Features of a whole split, computed once for all evaluations of an encoder.

[cls] and mean of the last four blocks, in a folder that the evaluations share:

    <key>/features.bin      (N, 2 * blocks, D), row i that of sample i, read by memory map
    <key>/done-00012288     rows of the chunk that begins with this one are written

The key is a digest of all that they depend on: weights and input size, the split, precision, the
kind of device, torch. The code is not in it: whoever names the folder answers for that. Chunks are
always the same images in the same batches, so that neither the number of processes nor a resume
changes a bit. Of any width they are whole pages: processes on other machines may write beside.

Features of a bfloat16 encoder are kept as float16, whose 11 bits hold what 8 have left; those of a
float32 encoder as float32. ImageNet-1K by ViT-B: 16 and 31 GB.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from asl_core import distributed
from asl_core.data.shards import PackedDataset
from asl_core.engine.devices import pick_device
from asl_core.modules.encoder import Encoder
from asl_core.recipes.optimisation import Resources
from asl_core.transfer.features import (
    CHUNK,
    POOLINGS,
    FeatureBatch,
    encode,
    encode_together,
    frozen_features,
)

BLOCKS = 4
"""Last ones, as far as the encoder has them."""
STORED = {"bf16": torch.float16, "fp32": torch.float32}
ROWS = "features.bin"


def split_features(
    encoder: Encoder,
    dataset: PackedDataset,
    *,
    precision: str,
    resources: Resources,
    folder: Path | None,
) -> FeatureBatch:
    """Return the features of a whole split, in index order, in every process.

    Args:
        encoder: Moved to the device of the resources, if it is needed at all.
        dataset: The split.
        precision: Of the encoder.
        resources: Device, workers.
        folder: Shared by evaluations; absent: they are computed and kept in memory.

    Returns:
        Features in the type that they are stored in; `columns` says where which of them are.
    """
    labels = torch.from_numpy(np.asarray(dataset.labels))
    indices = torch.arange(len(dataset))
    blocks, dtype = stored_blocks(encoder), STORED[precision]

    def reduce(images: Tensor) -> Tensor:
        return frozen_features(encoder, images, POOLINGS, blocks)  # (B, K, D)

    if folder is None:
        rows = encode_together(
            encoder, dataset, range(len(dataset)), reduce,
            precision=precision, resources=resources, dtype=dtype,
        )  # fmt: skip
        return FeatureBatch(rows, labels, indices)
    shape = (len(dataset), len(POOLINGS) * blocks, encoder.vit.embed_dim)
    file = _Rows(folder / _key(encoder, dataset, precision, resources), shape, dtype)
    for start in range(0, len(dataset), CHUNK)[distributed.rank() :: distributed.world_size()]:
        if not file.has(start):
            chunk = range(start, min(start + CHUNK, len(dataset)))
            rows = encode(encoder, dataset, chunk, reduce, precision=precision, resources=resources)
            file.write(start, rows.to(dtype))
    distributed.barrier()
    return FeatureBatch(file.read(), labels, indices)


def stored_blocks(encoder: Encoder) -> int:
    """Return how many last blocks the features are of."""
    return min(BLOCKS, encoder.vit.depth)


def columns(poolings: Sequence[str], blocks: int, stored: int) -> list[int]:
    """Return where the features of some poolings are, as `frozen_features` orders them.

    Args:
        poolings: cls, mean.
        blocks: How many last ones.
        stored: How many there are.
    """
    return [POOLINGS.index(name) * stored + block for name in poolings for block in range(blocks)]


class _Rows:
    """The rows on disk, written chunk by chunk."""

    def __init__(self, folder: Path, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
        self.folder, self.shape, self.dtype = folder, shape, dtype
        folder.mkdir(parents=True, exist_ok=True)

    def has(self, start: int) -> bool:
        return self._mark(start).exists()

    def write(self, start: int, rows: Tensor) -> None:
        """Write the chunk that begins with a row; others may write the same meanwhile."""
        content = rows.contiguous().numpy().tobytes()
        place = start * self.shape[1] * self.shape[2] * self.dtype.itemsize
        descriptor = os.open(self.folder / ROWS, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            while content:
                written = os.pwrite(descriptor, content, place)
                content, place = content[written:], place + written
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self._mark(start).touch()

    def read(self) -> Tensor:
        """Map the file: pages come when they are read, once for all processes of a machine."""
        os.utime(self.folder)  # still in use
        kind = {torch.float16: np.float16, torch.float32: np.float32}[self.dtype]
        # copy-on-write: torch wants memory that may be written
        return torch.from_numpy(np.memmap(self.folder / ROWS, kind, "c", shape=self.shape))

    def _mark(self, start: int) -> Path:
        return self.folder / f"done-{start:08d}"


def _key(encoder: Encoder, dataset: PackedDataset, precision: str, resources: Resources) -> str:
    """Return the digest of all that features depend on, but for the code."""
    device = pick_device(resources)
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{resources.threads}"
    known = {
        "vit": dataclasses.asdict(encoder.vit),
        "split": [dataset.split, dataset.manifest.digests[dataset.split]],
        "normalisation": [dataset.manifest.mean, dataset.manifest.std],
        "computed": [precision, device.type, kind, torch.__version__, CHUNK],
    }
    digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]
