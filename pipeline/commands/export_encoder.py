"""asl-pipe export-encoder."""

from pathlib import Path
from typing import Annotated

import typer

from asl_core.exchange.origin import Form


def export_encoder(
    name: Annotated[str, typer.Argument(metavar="NAME", help="An experiment of params.yaml.")],
    format: Annotated[Form, typer.Option(help="Who will read it.")] = Form.timm,
    out: Annotated[
        Path | None, typer.Option(help="File; default: exports/NAME-FORMAT in the suite.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Write an experiment's encoder in another project's format.

    Run it in a suite's folder. Prints the Python that reads the file.

    Example: asl-pipe export-encoder asl --format timm
    """
    from pipeline.execution.export_encoder import export_experiment
    from pipeline.project import find_project

    exported = export_experiment(find_project(Path.cwd()), name, format, out, force)
    typer.echo(f"{exported.path}; to read it:\n{exported.usage}")
