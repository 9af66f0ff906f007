"""asl-pipe sweep."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class SweepFormat(StrEnum):
    """How the tables of sweeps are printed."""

    text = "text"
    md = "md"
    csv = "csv"
    json = "json"


def sweep(
    suite: Annotated[
        str | None, typer.Argument(metavar="SUITE", help="demo, or a folder under suites/.")
    ] = None,
    experiment: Annotated[
        str | None, typer.Argument(metavar="EXPERIMENT", help="That sweep alone.")
    ] = None,
    format: Annotated[SweepFormat, typer.Option(help="Output format.")] = SweepFormat.text,
) -> None:
    """Print a suite's sweeps: a row for each combination of values, the best first.

    The order is that of one metric on training images held out (`select` of suite.yaml), never of
    test images: mean over seeds, standard error, and what a random encoder has. Reads existing
    results; changes nothing. Exit code 1 if a number is not the one that dvc.lock records. Without
    SUITE: the suite in the current folder.

    Example: asl-pipe sweep mine
    """
    from pipeline.commands.printing import console, end_with_doubts, text_table
    from pipeline.project import find_project, is_suite, named_suite
    from pipeline.tables.collect import doubts, read_suite
    from pipeline.tables.sweep import sweep_tables
    from pipeline.tables.sweep_formats import (
        cells,
        csv_text,
        headings,
        json_text,
        markdown,
        missing_commands,
    )

    here = Path.cwd()
    if (
        suite is not None
        and experiment is None
        and is_suite(here)
        and (named_suite(find_project(here).root, suite) is None)
    ):
        suite, experiment = None, suite
    tables = sweep_tables(read_suite(find_project(here, suite)), experiment)
    if format is not SweepFormat.text:
        write = {"md": markdown, "csv": csv_text, "json": json_text}[format.value]
        typer.echo(write(tables), nl=False)
    else:
        for table in tables:
            typer.echo(f"Sweep of {table.experiment}: {table.metric.words}\n")
            console().print(text_table(headings(table), cells(table)))
            for note in table.notes:
                typer.echo(note)
            missing = missing_commands(table)
            for name, command in missing.items():
                typer.echo(f"missing: {name}, made by `{command}`")
            typer.echo("")
    end_with_doubts(doubts(run for table in tables for run in table.results))
