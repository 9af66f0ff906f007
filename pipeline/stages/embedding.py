"""Make a file of embeddings, for the command `asl-pipe embed`: no stage of the DAG."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from asl_core.data.sources.source import Rejected
from asl_core.engine.devices import pick_device, require_precision
from asl_core.errors import InputError
from asl_core.transfer.embedding import embed_pending, joined
from asl_core.transfer.embedding_files import Columns, read_about, write_rows
from asl_core.transfer.embedding_vectors import InputForm, Reading, check_layer
from pipeline.errors import UserError
from pipeline.stages.embedding_about import about_file
from pipeline.stages.embedding_encoder import FoundEncoder, find_encoder
from pipeline.stages.embedding_images import PACKED, ListedImages, list_files, list_packed
from pipeline.stages.embedding_job import Embedded, EmbeddingJob
from pipeline.stages.embedding_parts import Parts, part_size
from pipeline.writing import write_bytes


def make_embeddings(job: EmbeddingJob) -> Embedded:
    """Embed images into a file, or go on where an earlier start was stopped.

    Raises:
        UserError: Another file is there, or parts of one; or no image can be read.
        InputError: The encoder or the images are not there or not usable.
        NotFinishedError: Another process writes this output.
    """
    began = time.monotonic()
    listed = list_packed(job.datasets) if job.datasets else list_files(job.images)
    found = find_encoder(job.encoder, job.image_size)
    check_layer(found.encoder, job.layer)
    device = pick_device(job.resources)
    if device.type == "cpu" and job.resources.threads is not None:
        torch.set_num_threads(job.resources.threads)
    require_precision(job.precision, device)
    about = describe(job, found, listed, device)
    dimension = about["dimension"]
    if job.out.exists() and not job.force:
        if (read_about(job.out) or {}).get("made_by") == about["made_by"]:
            return Embedded(about["made_by"]["count"], dimension, already=True)
        raise UserError(
            f"{job.out} exists and was made otherwise; use --force to replace it, or another output"
        )
    job.out.parent.mkdir(parents=True, exist_ok=True)
    parts = Parts(job.out)
    with parts.held():
        parts.begin(about, force=job.force)
        resumed, rejected = _fill(job, found, listed, parts)
        rows = len(listed.images) - len(rejected)
        _list_rejected(job.out, rejected)
        if not rows:
            parts.remove()
            raise UserError(
                f"none of {len(rejected)} images can be read, the first {rejected[0].name}: "
                f"{rejected[0].reason}; all are in {rejected_list(job.out)}"
            )
        _publish(job, listed, parts, about)
        parts.remove()
    return Embedded(
        rows, dimension, tuple((each.name, each.reason) for each in rejected), tuple(listed.notes),
        resumed, time.monotonic() - began,
    )  # fmt: skip


def describe(
    job: EmbeddingJob, found: FoundEncoder, listed: ListedImages, device: torch.device
) -> dict[str, Any]:
    """Return what the file is to say of itself; `made_by` decides whether another one is the same.

    On another device, with other threads or another torch the rows would be rounded otherwise.
    """
    base = Path(os.path.abspath(job.out)).parent
    return about_file(
        found.encoder,
        _reading(job),
        _form(job, found),
        sha256=found.sha256,
        name=job.encoder.name,
        key=job.encoder.key,
        place=os.path.relpath(os.path.abspath(job.encoder.path), base),
        images=os.path.relpath(listed.root, base),
        kind=listed.kind,
        classes=listed.classes,
        made_by={
            "asl_pipe": job.version,
            "precision": job.precision,
            "batch": job.batch_size,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "threads": torch.get_num_threads() if device.type == "cpu" else None,
            "torch": torch.__version__,
            "names_sha256": listed.digest,
            "count": len(listed.images),
        },
    )


def rejected_list(out: Path) -> Path:
    """Return where the images are listed that could not be read."""
    return out.with_name(f"{out.name}.rejected.txt")


def _fill(
    job: EmbeddingJob, found: FoundEncoder, listed: ListedImages, parts: Parts
) -> tuple[int, list[Rejected]]:
    """Make the parts that are not there; return how many images were, and what is unreadable."""
    images, size = listed.images, part_size(job.batch_size)
    rejected: dict[int, list[Rejected]] = {}
    missing: list[int] = []
    for start in range(0, len(images), size):
        part = parts.load(start, images[start : start + size])
        if part is None:
            missing.append(start)
        else:
            rejected[start] = part[1]
    wanted = [image for start in missing for image in images[start : start + size]]
    done = len(images) - len(wanted)
    batches = embed_pending(
        found.encoder, [image.pending for image in wanted], _reading(job),
        _form(job, found),
        precision=job.precision, batch_size=job.batch_size, workers=job.workers,
        resources=job.resources,
    )  # fmt: skip
    with tqdm(
        total=len(images), initial=done, desc="embed", unit="image", disable=None
    ) as bar:  # fmt: skip
        for start in missing:
            own = images[start : start + size]
            made = []
            for _ in range(0, len(own), job.batch_size):
                made.append(next(batches))
                bar.update(len(made[-1]) + len(made[-1].rejected))
            rows = joined(made)
            parts.save(start, own, rows, listed.kind == PACKED)
            rejected[start] = rows.rejected
    return done, [each for start in sorted(rejected) for each in rejected[start]]


def _publish(job: EmbeddingJob, listed: ListedImages, parts: Parts, about: dict[str, Any]) -> None:
    """Write the file from its parts and rename it into place."""
    made = job.out.with_name(f".{job.out.name}.part")
    try:
        write_rows(made, _stored(job, listed, parts), about)
        made.replace(job.out)
    finally:
        made.unlink(missing_ok=True)


def _stored(job: EmbeddingJob, listed: ListedImages, parts: Parts) -> Iterator[Columns]:
    size = part_size(job.batch_size)
    for start in range(0, len(listed.images), size):
        part = parts.load(start, listed.images[start : start + size])
        if part is None:
            raise InputError(
                f"images of {listed.root} change while they are embedded; run the same command "
                "again when they do not"
            )
        yield part[0]


def _list_rejected(out: Path, rejected: list[Rejected]) -> None:
    """Write a line for each image that could not be read; no file where all could."""
    path = rejected_list(out)
    if rejected:
        lines = "".join(f"{each.name}\t{each.reason}\n" for each in rejected)
        write_bytes(path, lines.encode(errors="backslashreplace"))
    else:
        path.unlink(missing_ok=True)


def _reading(job: EmbeddingJob) -> Reading:
    return Reading(job.pooling, job.layer, job.patch_tokens)


def _form(job: EmbeddingJob, found: FoundEncoder) -> InputForm:
    return InputForm(found.encoder.vit.image_size, job.mean, job.std)
