"""asl-pipe neighbours."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.embed import Device


def neighbours(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Embeddings: .parquet or .npz.")],
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE...",
            help="Rows of FILE by their names; or image files, which are embedded as FILE's were.",
        ),
    ],
    count: Annotated[
        int, typer.Option("-k", "--count", help="Neighbours of each image.", min=1)
    ] = 10,
    out: Annotated[Path, typer.Option("--out", "-o", help="The page to write.")] = Path(
        "neighbours.html"
    ),
    encoder: Annotated[
        str | None,
        typer.Option(
            help="An experiment or a path, where FILE's encoder is not where it was; it must "
            "have the same weights."
        ),
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option("--images", help="Folder of FILE's images, where they were moved."),
    ] = None,
    device: Annotated[
        Device, typer.Option(help="For new images; auto: a GPU where there is one.")
    ] = Device.cpu,
) -> None:
    """Show the images of a file of embeddings that are nearest to others.

    Prints a table and writes one page with thumbnails, cosines and file names, which
    loads nothing from anywhere. Rows need no encoder; an image that is not in FILE is embedded by
    the encoder that FILE names.

    Example: asl-pipe neighbours photos.parquet holidays/cat.jpg ~/new.jpg -k 12 -o cats.html
    """
    from pipeline.commands.printing import console, text_table
    from pipeline.errors import UserError
    from pipeline.execution.neighbours import search, write_page
    from pipeline.execution.output_place import refuse_file_in_the_way

    if out.suffix not in (".html", ".htm"):
        raise UserError(f"{out}: a page ends in .html")
    refuse_file_in_the_way(out.parent)
    file = file.expanduser()
    found = search(
        file, images, count, encoder=encoder, images=None if root is None else root.expanduser(),
        device=device.value, start=Path.cwd(),
    )  # fmt: skip
    rows = [
        (each.query.name if place == 1 else "", str(place), f"{image.cosine:.4f}", image.name)
        for each in found.neighbourhoods
        for place, image in enumerate(each.neighbours, 1)
    ]
    console().print(text_table(["image", "", "cosine", "nearest"], rows))
    for note in found.notes:
        typer.echo(f"asl-pipe: {note}", err=True)
    write_page(out, file, found)
    typer.echo(f"page: {out}")
