"""Features of a whole split, computed once for all evaluations of an encoder.

[cls] and mean of the last four blocks, in a folder that the evaluations share:

    <key>/features.bin      (N, 2 * blocks, D), row i that of sample i, read by memory map
    <key>/done-000003       rows of chunk 3 are written

The key is a digest of all that they depend on: weights and input size, the split, precision, the
kind of device, torch. The code is not in it: whoever names the folder answers for that. Chunks are
always the same images in the same batches, so that neither the number of processes nor a resume
changes a bit, and each begins on a page of its own: processes on other machines may write beside.

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
from asl_core.transfer.features import POOLINGS, FeatureBatch, extract_features

CHUNK = 4096
"""Images: of any width a whole number of pages."""
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
    chunks = range(-(-len(dataset) // CHUNK))
    own = chunks[distributed.rank() :: distributed.world_size()]

    def compute(chunk: int) -> Tensor:
        rows = range(chunk * CHUNK, min((chunk + 1) * CHUNK, len(dataset)))
        found = extract_features(
            encoder, dataset, poolings=POOLINGS, blocks=stored_blocks(encoder),
            precision=precision, resources=resources, subset=rows,
        )  # fmt: skip
        return found.features.to(STORED[precision])  # (C, K, D)

    if folder is None:
        shares = distributed.gather_objects({chunk: compute(chunk) for chunk in own})
        by_chunk = {chunk: rows for share in shares for chunk, rows in share.items()}
        return FeatureBatch(torch.cat([by_chunk[chunk] for chunk in chunks]), labels, indices)
    shape = (len(dataset), len(POOLINGS) * stored_blocks(encoder), encoder.vit.embed_dim)
    file = _Rows(folder / _key(encoder, dataset, precision, resources), shape, STORED[precision])
    for chunk in own:
        if not file.has(chunk):
            file.write(chunk, compute(chunk))
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

    def has(self, chunk: int) -> bool:
        return self._mark(chunk).exists()

    def write(self, chunk: int, rows: Tensor) -> None:
        """Write a chunk; others, of the same content, may do the same meanwhile."""
        content = rows.contiguous().numpy().tobytes()
        place = chunk * CHUNK * self.shape[1] * self.shape[2] * self.dtype.itemsize
        descriptor = os.open(self.folder / ROWS, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            while content:
                written = os.pwrite(descriptor, content, place)
                content, place = content[written:], place + written
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self._mark(chunk).touch()

    def read(self) -> Tensor:
        """Map the file: pages come when they are read, once for all processes of a machine."""
        kind = {torch.float16: np.float16, torch.float32: np.float32}[self.dtype]
        # copy-on-write: torch wants memory that may be written
        return torch.from_numpy(np.memmap(self.folder / ROWS, kind, "c", shape=self.shape))

    def _mark(self, chunk: int) -> Path:
        return self.folder / f"done-{chunk:06d}"


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
