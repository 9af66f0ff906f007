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
    csv = "csv"
    json = "json"


def tables(
    suite: Annotated[
        str | None,
        typer.Argument(
            metavar="SUITE", help="demo, a folder under suites/, or a table of the current suite."
        ),
    ] = None,
    format: Annotated[Format, typer.Option(help="Output format.")] = Format.text,
) -> None:
    """Print a suite's tables: paper, ours, delta where the data are the paper's.

    Reads existing results; changes nothing. The first row is a random encoder's, and what does not
    exceed it is marked. A missing cell names the command that fills it. Exit
    code 1 if a number is not the one that dvc.lock records; it is marked. Without SUITE: the suite
    in the current folder. csv and json have every cell with its n, standard error, floor, chance
    level, fingerprint and commit; the report stage leaves both in reports/ too.

    Example: asl-pipe tables cifar10-mini --format latex
    """
    from pipeline.commands.printing import end_with_doubts
    from pipeline.project import find_project, is_suite, named_suite
    from pipeline.tables.collect import doubts, read_suite
    from pipeline.tables.formats import render_tables

    here, table = Path.cwd(), None
    if suite is not None and is_suite(here) and named_suite(find_project(here).root, suite) is None:
        suite, table = None, suite
    found = read_suite(find_project(here, suite))
    typer.echo(render_tables(found, format.value, table=table), nl=False)
    end_with_doubts(doubts(found.results.values()))
