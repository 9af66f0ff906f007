"""asl-pipe embed."""

import importlib.metadata
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pipeline.stages.embedding_job import Embedded


class Pooling(StrEnum):
    """How an image becomes one vector."""

    cls = "cls"
    mean = "mean"
    both = "cls+mean"


class Precision(StrEnum):
    """What the encoder computes in."""

    fp32 = "fp32"
    bf16 = "bf16"


class Device(StrEnum):
    """Where it computes."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


def embed(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="An experiment of params.yaml; or an encoder's folder, or a checkpoint file.",
        ),
    ],
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGES...",
            help="Folders, with all below them, and image files; or packed datasets of the "
            "suite: icons, icons/test.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write: .parquet or .npz.")],
    pooling: Annotated[
        Pooling,
        typer.Option(help="[cls], the mean of the patches, or one behind the other."),
    ] = Pooling.cls,
    layer: Annotated[
        str, typer.Option(help="Which block is read: last, or -1, -2, ... from the end.")
    ] = "last",
    patch_tokens: Annotated[
        bool,
        typer.Option(
            "--patch-tokens",
            help="Write the vectors of the patches too: as large as the pictures' pixels in float.",
        ),
    ] = False,
    image_size: Annotated[
        int | None,
        typer.Option(help="Side of the input in pixels; default: the encoder's own.", min=1),
    ] = None,
    normalisation: Annotated[
        str | None,
        typer.Option(
            help="imagenet, cifar10, cifar100 or inception; default: that of the experiment's "
            "dataset, for a path imagenet."
        ),
    ] = None,
    precision: Annotated[Precision, typer.Option(help="bf16 is faster on GPUs.")] = Precision.fp32,
    batch: Annotated[int, typer.Option(help="Images encoded together.", min=1)] = 64,
    device: Annotated[Device, typer.Option(help="auto: a GPU where there is one.")] = Device.auto,
    workers: Annotated[
        int | None,
        typer.Option(help="Threads that read and decode; default: half of the cores.", min=0),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(help="Threads that encode on a CPU; default: the other half.", min=1),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a file that is there, and parts of another.")
    ] = False,
) -> None:
    """Write a vector for each image into one file, with file names and digests.

    NAME's encoder is used as it is; where it is not what the suite would train now, this
    says so. Images are resized and cropped as the evaluations do it. JPEG, PNG, WebP, AVIF, HEIC,
    BMP, TIFF and GIF are read. What cannot be read is listed with its reason in
    FILE.rejected.txt. Killed, the same command goes on where it was.

    Example: asl-pipe embed asl ~/photos -o photos.parquet

    Example: asl-pipe embed asl icons/test -o icons.npz --pooling cls+mean

    Example: asl-pipe embed encoders/mae-vit-b ~/photos -o photos.parquet --layer -2

    Then: asl-pipe neighbours photos.parquet ~/photos/cat.jpg
    """
    from pipeline.execution.embed import EmbedRequest, embed_images

    request = EmbedRequest(
        name=name, images=images, out=out.expanduser(),
        version=importlib.metadata.version("asl-pipe"), pooling=pooling.value, layer=layer,
        patch_tokens=patch_tokens, image_size=image_size, normalisation=normalisation,
        precision=precision.value, batch_size=batch, device=device.value, workers=workers,
        threads=threads, force=force,
    )  # fmt: skip
    outcome = embed_images(request, Path.cwd())
    for doubt in outcome.doubts:
        typer.echo(f"asl-pipe: {doubt}", err=True)
    for note in outcome.made.notes:
        typer.echo(note)
    typer.echo(_said(out, outcome.made))
    if outcome.made.rejected:
        first = ": ".join(outcome.made.rejected[0])
        total = outcome.made.rows + len(outcome.made.rejected)
        typer.echo(
            f"{len(outcome.made.rejected):,} of {total:,} images could not be read, the first "
            f"{first}; all are in {out}.rejected.txt"
        )


def _said(out: Path, made: Embedded) -> str:
    """Return what was made, in a line."""
    if made.already:
        return f"{out} is what this command makes; nothing was done (--force makes it again)"
    rate = ""
    new = made.rows + len(made.rejected) - made.resumed
    if new and made.seconds > 0:
        rate = f", {new / made.seconds:,.0f} images/s"
    resumed = f", {made.resumed:,} of them embedded before" if made.resumed else ""
    return f"{out}: {made.rows:,} rows of {made.dimension} values{resumed}{rate}"
