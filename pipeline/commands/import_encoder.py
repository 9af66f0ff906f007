"""asl-pipe import-encoder."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from asl_core.exchange.origin import Branch, Convention, ImportOptions

if TYPE_CHECKING:
    from rich.table import Table

    from pipeline.execution.import_encoder import ImportedEncoder


def import_encoder(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE]", help="A checkpoint: safetensors or torch file."),
    ] = None,
    published: Annotated[
        str | None,
        typer.Option(
            help="Weights that their authors publish, mae-vit-b for instance; without "
            "FILE they are downloaded. Their digest is checked."
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the encoder; default: from the file name.")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Input side in pixels; positions are resized to it.", min=1)
    ] = None,
    num_heads: Annotated[
        int | None, typer.Option(help="Attention heads, if not one per 64 of the width.", min=1)
    ] = None,
    branch: Annotated[
        Branch | None,
        typer.Option(help="Which of two encoders; default: the one its authors evaluate."),
    ] = None,
    prefix: Annotated[
        str | None,
        typer.Option(help="Where the encoder stands in the file, if there are several."),
    ] = None,
    positions: Annotated[
        Convention | None,
        typer.Option(help="For a checkpoint without positions: MAE x, MoCo v3 y."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing encoder.")] = False,
) -> None:
    """Import an encoder that was trained elsewhere.

    Run it in a suite's folder. Reads checkpoints of the official MAE, timm's ViTs,
    DINO, DINOv2, iBOT, MoCo v3 and others with timm's names; runs no code from the file. Writes
    encoders/NAME and prints the experiment to paste into params.yaml. To train it further, name
    the folder and its sha256 as `initialise` of an experiment.

    Example: asl-pipe import-encoder mae_pretrain_vit_base.pth --name mae-official

    Example: asl-pipe import-encoder --published mae-vit-b
    """
    from rich.console import Console

    from asl_core.recipes.published import PUBLISHED
    from pipeline.config.suggest import unknown_name
    from pipeline.errors import UserError
    from pipeline.execution.import_encoder import fetch_published, import_checkpoint
    from pipeline.project import find_project

    options = ImportOptions(
        branch=branch, prefix=prefix, num_heads=num_heads, image_size=image_size,
        positions=positions,
    )  # fmt: skip
    project = find_project(Path.cwd())
    if published is not None and published not in PUBLISHED:
        raise UserError(unknown_name("published weights", published, PUBLISHED))
    if published is not None and name not in (None, published):
        raise UserError(f"published weights are called {published}; leave --name out")
    if file is None:
        if published is None:
            raise UserError(
                "got no FILE; give a checkpoint, or published weights: --published NAME"
            )
        file = fetch_published(project, published)
    imported = import_checkpoint(project, file, name or published, options, force, published)
    Console().print(describe(imported))
    typer.echo("Paste into params.yaml, then name it under linprobe, finetune, ... as well:\n")
    typer.echo(imported.lines, nl=False)


def describe(imported: "ImportedEncoder") -> "Table":
    """Return what was found as a table of two columns."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    vit, origin = imported.vit, imported.origin
    grid = f"{vit.grid_size}x{vit.grid_size}"
    dropped = ", ".join(f"{count} {name}" for name, count in origin.dropped.items())
    rows = {
        "file": f"{origin.file} ({origin.form})",
        "found in": ": ".join(filter(None, (origin.container, origin.prefix))) or "the top",
        "beside it": ", ".join(origin.beside) or "nothing",
        "dropped": dropped or "nothing",
        "size": f"depth {vit.depth}, width {vit.embed_dim}, mlp_ratio {vit.mlp_ratio:g}",
        **({"registers": str(vit.registers)} if vit.registers else {}),
        "heads": f"{vit.num_heads} ({origin.num_heads_from})",
        "input": f"{vit.image_size} px, {grid} patches of {vit.patch_size} px",
        "positions": origin.positions,
        **{f"note {number}": note for number, note in enumerate(origin.notes, 1)},
    }
    table = Table(imported.path, "", box=SIMPLE_HEAD, show_edge=False)
    for what, found in rows.items():
        table.add_row(what, escape(found))
    return table
