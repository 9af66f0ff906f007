"""Nearest neighbours among embeddings, as rows and as one page that loads nothing from anywhere."""

import importlib
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from asl_core.recipes.optimisation import Resources
from pipeline.errors import UserError
from pipeline.execution.embed import prepare_computing
from pipeline.execution.encoder_place import encoder_named, project_here
from pipeline.garbage import collect_as_usual
from pipeline.stages.embedding_job import Found, NeighboursJob
from pipeline.writing import write_bytes

PACKAGE_DATA = ("templates/*.j2",)


def search(
    file: Path,
    queries: Sequence[str],
    count: int,
    *,
    encoder: str | None,
    images: Path | None,
    device: str,
    start: Path,
) -> Found:
    """Find the rows nearest to each query.

    Args:
        file: That `asl-pipe embed` wrote.
        queries: Names of its rows, or image files.
        count: How many neighbours of each.
        encoder: An experiment or a path, where the file's own encoder is not where it was.
        images: Folder of the file's images, where they are not where they were.
        device: For new images.
        start: The current folder.

    Raises:
        UserError: A query is neither; or a name is wrong.
        InputError: The file is none; or an image is new and the encoder is gone or another one.
    """
    if images is not None and not images.is_dir():
        raise UserError(f"--images {images} is no folder; give that of the file's images")
    named = None if encoder is None else encoder_named(encoder, project_here(start)).place
    resources, _ = prepare_computing(device, None, 0)
    job = NeighboursJob(
        file, tuple(queries), count, named, images, Resources(device=resources.device)
    )
    neighbours = importlib.import_module("pipeline.stages.neighbours")  # loads torch
    collect_as_usual()
    return neighbours.find_neighbours(job)


def write_page(path: Path, file: Path, found: Found) -> None:
    """Write the page, whole or not at all."""
    made = found.about["made_by"]
    layer = "" if made["layer"] == -1 else f", block {made['layer']} from the end"
    environment = Environment(
        loader=PackageLoader("pipeline.execution"), autoescape=True, undefined=StrictUndefined
    )
    text = environment.get_template("neighbours.html.j2").render(
        file=file.name,
        encoder=found.about["encoder"]["name"],
        what=f"{made['pooling']}{layer}, {found.about['dimension']} values, input "
        f"{made['preprocessing']['image_size']} px",
        digest=made["encoder_sha256"][:12],
        rows=found.rows,
        neighbourhoods=found.neighbourhoods,
        notes=found.notes,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, text.encode("utf-8"))
