"""asl-pipe compare."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from pipeline.tables.compare import Comparison, Pair

ERRORS = (
    "standard errors of differences are those of two sets of test images; on the same images, as "
    "where the data are equal, a difference varies less"
)


def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="An experiment, or SUITE/EXPERIMENT.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Another one.")],
) -> None:
    """Print the settings in which two experiments differ, and the differences of their numbers.

    Differences are B minus A: above zero where B has more. They come with their standard error over
    the choice of test images where it is known. `asl-pipe ui` shows the same as charts. Exit code 1
    if a number is not the one that dvc.lock records; it is marked with a question mark.

    Example: asl-pipe compare mae asl
    """
    from pipeline.commands.printing import console, end_with_doubts, text_table
    from pipeline.tables.experiments import compare_experiments

    found = compare_experiments(Path.cwd(), first, second)
    if found.differences:
        rows = [(d.stage, d.setting, *d.values) for d in found.differences]
        console().print(text_table(("stage", "setting", first, second), rows))
    else:
        typer.echo("all settings are equal\n")
    console().print(metrics_table(found, first, second))
    for stage, (one, other) in found.states.items():
        typer.echo(f"{stage}: {first} is {one}, {second} is {other}")
    if any(pair.error is not None for pair in found.pairs):
        typer.echo(ERRORS)
    end_with_doubts(found.doubts)


def metrics_table(found: "Comparison", first: str, second: str) -> "Table":
    """Return the numbers of both and their differences."""
    from pipeline.commands.printing import text_table

    rows = [
        (pair.stage, pair.metric, *map(_number, pair.values, pair.differing), _difference(pair))
        for pair in found.pairs
    ]
    return text_table(("stage", "metric", first, second, f"{second} minus {first}"), rows)


def _number(value: float | None, differing: bool) -> str:
    from pipeline.rounding import significant

    return "-" if value is None else significant(value, 6) + " ?" * differing


def _difference(pair: "Pair") -> str:
    from pipeline.rounding import significant

    if pair.difference is None:
        return "-"
    sign = "+" if pair.difference >= 0 else ""
    error = "" if pair.error is None else f" (standard error {significant(pair.error, 2)})"
    return f"{sign}{significant(pair.difference, 4)}{error}"
