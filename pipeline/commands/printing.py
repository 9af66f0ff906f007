"""Tables for a terminal; in a pipe the same, as wide as they need to be."""

import sys
from collections.abc import Sequence

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

PIPE_COLUMNS = 240
"""Nobody folds the lines of a pipe."""

STYLES = {
    "SUCCEEDED": "green", "ACTIVE": "cyan", "SETTLING": "cyan", "FAILED": "red", "LOST": "red",
    "BLOCKED": "yellow", "UNKNOWN": "yellow", "STOPPED": "yellow",
}  # fmt: skip
"""Colours of states; a pipe gets none."""


def text_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Return a table; cells are texts, never markup."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, style=STYLES.get(cell.split(" ")[0], "")) for cell in row))
    return table


def end_with_doubts(doubts: Sequence[str]) -> None:
    """Say on standard error why printed numbers are not those of dvc.lock, and end with 1."""
    for doubt in doubts:
        typer.echo(f"asl-pipe: {doubt}", err=True)
    if doubts:
        raise typer.Exit(1)


def console() -> Console:
    """Return standard output, wide where it is no terminal."""
    return Console(width=None if sys.stdout.isatty() else PIPE_COLUMNS, highlight=False)
