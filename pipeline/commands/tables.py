"""asl-pipe tables."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Format(StrEnum):
    """How tables are printed."""

    text = "text"
    md = "md"
    latex = "latex"
    html = "html"


def tables(
    suite: Annotated[
        str | None, typer.Argument(metavar="SUITE", help="demo, or a folder under suites/.")
    ] = None,
    format: Annotated[Format, typer.Option(help="Output format.")] = Format.text,
) -> None:
    """Print a suite's tables: paper, ours, delta.

    Reads existing results; changes nothing. A missing cell names the command that fills it. Without
    SUITE: the suite in the current folder.

    Example: asl-pipe tables cifar10-mini --format latex
    """
    from pipeline.project import find_project
    from pipeline.tables.formats import render_tables

    typer.echo(render_tables(find_project(Path.cwd(), suite), format.value), nl=False)
