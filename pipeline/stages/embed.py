"""Embeddings of a dataset's images by a pre-trained encoder, as one Parquet file."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from asl_core import distributed
from asl_core.analysis.similarity import effective_rank
from asl_core.data.encoded_files import EncodedFiles
from asl_core.data.shards import PackedDataset
from asl_core.engine.devices import pick_device
from asl_core.modules.encoder import WEIGHTS_FILE, Encoder, load_encoder
from asl_core.recipes.embedding import Embedding
from asl_core.transfer.embedding_files import Columns, write_rows
from asl_core.transfer.embedding_vectors import InputForm, Reading, embed_split
from pipeline.stages.embedding_about import about_file
from pipeline.stages.request import StageRequest, StoredRun

FILE = "embeddings.parquet"
BATCH = 256
"""Images that `encode_together` encodes at once; new images are embedded in as many."""
SUITE = "../../.."
"""From the folder of a run's details, runs/embed/<key>."""


def run(request: StageRequest[Embedding]) -> dict[str, float]:
    """Embed the images and write them, with their labels, file digests and sizes."""
    distributed.initialise_from_environment(pick_device(request.resources))
    recipe, dataset = request.recipe, request.inputs["dataset"]
    encoder = load_encoder(request.inputs["encoder"], image_size=recipe.image_size)
    vectors = _embed(encoder, request)
    if distributed.rank() == 0:
        parts = (_columns(PackedDataset(dataset, split), vectors[split]) for split in vectors)
        write_rows(request.out / FILE, parts, _about(request, encoder))
        request.journal.artifact(FILE)
    return _metrics(vectors)


def reevaluate(run: StoredRun[Embedding]) -> dict[str, float]:
    """Embed once more: there is nothing but the encoder that the numbers come from."""
    encoder = load_encoder(run.inputs["encoder"], image_size=run.recipe.image_size)
    return _metrics(_embed(encoder, run))


def _embed(
    encoder: Encoder, run: StageRequest[Embedding] | StoredRun[Embedding]
) -> dict[str, Tensor]:
    """Return the vectors by split, each (N, E)."""
    recipe = run.recipe
    return {
        split: embed_split(
            encoder,
            PackedDataset(run.inputs["dataset"], split),
            Reading(recipe.pooling, recipe.layer),
            precision=recipe.precision,
            resources=run.resources,
        )
        for split in recipe.splits
    }


def _metrics(vectors: dict[str, Tensor]) -> dict[str, float]:
    """Count, and measure in how many directions the vectors of all splits lie."""
    every = torch.cat([*vectors.values()])
    return {
        "embed_images": float(len(every)),
        "embed_dimension": float(every.shape[1]),
        "embed_effective_rank": effective_rank(every[None]).item(),
    }


def _columns(dataset: PackedDataset, vectors: Tensor) -> Columns:
    sizes = np.array([dataset.image_size(index) for index in range(len(dataset))], dtype=np.int32)
    return {
        "file": np.array([f"{dataset.split}/{index:08d}" for index in range(len(dataset))]),
        "sha256": np.array([*_digests(dataset)], dtype="<U64"),
        "height": sizes[:, 0],
        "width": sizes[:, 1],
        "label": dataset.labels,
        "embedding": vectors.numpy(),
    }


def _digests(dataset: PackedDataset) -> Iterator[str]:
    files = EncodedFiles(dataset.folder, dataset.split)
    for index in range(len(files)):
        yield hashlib.sha256(files.read(index).numpy().data).hexdigest()


def _about(request: StageRequest[Embedding], encoder: Encoder) -> dict[str, object]:
    """Return what the file says of itself, with places as seen from the run's folder in a suite."""
    recipe, manifest = request.recipe, PackedDataset(request.inputs["dataset"], "test").manifest
    return about_file(
        encoder,
        Reading(recipe.pooling, recipe.layer),
        InputForm(encoder.vit.image_size, manifest.mean, manifest.std),
        sha256=_sha256(request.inputs["encoder"] / WEIGHTS_FILE),
        name=request.key,
        key=None,  # dvc.lock has it
        place=f"{SUITE}/runs/encoder/{request.key}",
        images=f"{SUITE}/data/{recipe.dataset}",
        kind="packed",
        classes=manifest.classes,
        made_by={
            "precision": recipe.precision,
            "batch": BATCH,
            "images": {split: manifest.digests[split] for split in recipe.splits},
        },
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
