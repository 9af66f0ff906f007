"""Nearest neighbours and their pictures, for `asl-pipe neighbours`: no stage of the DAG."""

import base64
import io
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from asl_core.data.sources.files import shown
from asl_core.errors import InputError
from asl_core.transfer.embedding import Pending, Picture, embed_pending, read_picture
from asl_core.transfer.embedding_files import EmbeddingFile, read_embeddings
from asl_core.transfer.embedding_vectors import InputForm, Reading
from pipeline.config.suggest import hint
from pipeline.errors import UserError
from pipeline.stages.embedding_encoder import find_encoder, weights_digest
from pipeline.stages.embedding_images import read_row
from pipeline.stages.embedding_job import (
    EncoderPlace,
    Found,
    Neighbour,
    Neighbourhood,
    NeighboursJob,
)

SIDE = 192
"""Longest side of a thumbnail in pixels."""
CHUNK = 2**16
"""Rows that are compared at once."""


def find_neighbours(job: NeighboursJob) -> Found:
    """Find the rows nearest to each query by cosine, the query itself left out.

    Raises:
        InputError: The file is no file of embeddings; or a query is a new image, and the encoder is
            gone or is another one.
        UserError: A query is neither a row nor a file that can be read.
    """
    file = read_embeddings(job.file)
    base = Path(os.path.abspath(job.file)).parent
    root = job.images or base / file.about["images"]["place"]
    kind = file.about["images"]["kind"]
    rows = {name: number for number, name in enumerate(file.names)}
    by_digest = {digest: number for number, digest in reversed([*enumerate(file.sha256)])}
    known: list[int | None] = []
    new: list[tuple[str, Picture]] = []
    for query in job.queries:
        number = rows.get(query)
        if number is None:
            picture = _read_query(query, job.file, rows)
            number = by_digest.get(picture.sha256)
            if number is None:
                new.append((query, picture))
        known.append(number)
    vectors = iter(_embed_new(job, file, base, new) if new else ())
    pending = iter(new)
    gone: list[str] = []
    found: list[Neighbourhood] = []
    for number in known:
        if number is not None:
            picked = _nearest(file, file.vectors[number], job.count, number)
            query = _row(file, root, kind, number, 1.0, "", gone)
            digest = file.sha256[number]
        else:
            name, picture = next(pending)
            picked = _nearest(file, next(vectors), job.count, None)
            query = Neighbour(shown(name), 1.0, thumbnail(picture.pixels))
            digest = picture.sha256
        others = (_row(file, root, kind, n, cosine, digest, gone) for n, cosine in picked)
        found.append(Neighbourhood(query, tuple(others)))
    return Found(tuple(found), file.about, len(file.names), tuple(_notes(root, gone)))


def thumbnail(pixels: Tensor) -> str:
    """Return a small JPEG as a data URI; (3, H, W), uint8."""
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    width, height = image.size
    if max(width, height) < SIDE // 2:  # seen larger than it is: without blur
        scale = SIDE // max(width, height)
        image = image.resize((width * scale, height * scale), Image.Resampling.NEAREST)
    else:
        image.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def _read_query(query: str, file: Path, rows: dict[str, int]) -> Picture:
    path = Path(query).expanduser()
    if not path.is_file():
        raise UserError(
            f"{shown(query)} is no row of {file} and no file{hint(query, list(rows)[:10_000])}"
            f"{_example(rows)}"
        )
    try:
        return read_picture(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{shown(query)}: {error}; give another image") from None


def _example(rows: dict[str, int]) -> str:
    first = next(iter(rows), None)
    return "" if first is None else f"; rows are called like {first}"


def _embed_new(
    job: NeighboursJob, file: EmbeddingFile, base: Path, new: list[tuple[str, Picture]]
) -> NDArray[np.float32]:
    """Embed images as those of the file were; (Q, E)."""
    made, named = file.about["made_by"], file.about["encoder"]
    place = job.encoder or EncoderPlace(named["name"], base / named["place"])
    if not place.path.exists():
        raise InputError(
            f"{job.file} was made by the encoder {named['name']}, which is not at "
            f"{place.path} any more; give --encoder NAME or PATH, or rows of the file"
        )
    digest = weights_digest(place.path)
    if digest != made["encoder_sha256"]:
        raise InputError(
            f"{place.path} is another encoder than {job.file} was made by (sha256 {digest[:12]}, "
            f"expected {made['encoder_sha256'][:12]}); embed the images again, or give --encoder"
        )
    form = made["preprocessing"]
    found = find_encoder(place, form["image_size"])
    batches = embed_pending(
        found.encoder, [Pending(name, lambda p=picture: p) for name, picture in new],
        Reading(made["pooling"], made["layer"]),
        InputForm(form["image_size"], tuple(form["mean"]), tuple(form["std"])),
        precision=made["precision"], batch_size=made["batch"], workers=0, resources=job.resources,
    )  # fmt: skip
    return np.concatenate([rows.vectors.numpy() for rows in batches])


def _nearest(
    file: EmbeddingFile, query: NDArray[np.float32], count: int, own: int | None
) -> list[tuple[int, float]]:
    """Return the rows nearest to a vector and their cosines; of equally near ones the first."""
    wanted = query.astype(np.float64)
    wanted /= max(float(np.linalg.norm(wanted)), 1e-12)
    parts: list[NDArray[np.float64]] = []
    for start in range(0, len(file.vectors), CHUNK):
        rows = file.vectors[start : start + CHUNK].astype(np.float64)  # (C, E)
        parts.append(rows @ wanted / np.linalg.norm(rows, axis=1).clip(1e-12))
    cosines = np.concatenate(parts)
    if own is not None:
        cosines[own] = -np.inf
    order = np.argsort(-cosines, kind="stable")[: min(count, len(cosines) - (own is not None))]
    return [(int(number), float(cosines[number])) for number in order]


def _row(
    file: EmbeddingFile, root: Path, kind: str, number: int, cosine: float, digest: str,
    gone: list[str],
) -> Neighbour:  # fmt: skip
    """Return a row with its picture; where that is gone, its name goes into `gone`."""
    name, missing, picture = file.names[number], "", None
    try:
        picture = thumbnail(read_row(root, kind, name))
    except (OSError, InputError):
        missing = "gone"
    except ValueError as error:
        missing = str(error)
    if missing:
        gone.append(name)
    return Neighbour(name, cosine, picture, missing, file.sha256[number] == digest)


def _notes(root: Path, gone: list[str]) -> Iterator[str]:
    names = [*dict.fromkeys(gone)]
    if names:
        more = "" if len(names) == 1 else f" and {len(names) - 1} more"
        yield (
            f"{names[0]}{more} cannot be shown: not in {shown(root)} any more; --images FOLDER "
            "says where the images are now"
        )
