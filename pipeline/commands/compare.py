"""asl-pipe compare."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from pipeline.tables.compare import Comparison


def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="An experiment, or SUITE/EXPERIMENT.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Another one.")],
) -> None:
    """Print the settings in which two experiments differ, and the differences of their numbers.

    Differences are B minus A. `asl-pipe ui` shows the same as charts.

    Example: asl-pipe compare mae asl
    """
    from pipeline.commands.printing import console, text_table
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


def metrics_table(found: "Comparison", first: str, second: str) -> "Table":
    """Return the numbers of both and their differences."""
    from pipeline.commands.printing import text_table

    rows = [
        (
            pair.stage, pair.metric, *("-" if v is None else f"{v:.6g}" for v in pair.values),
            "-" if pair.difference is None else f"{pair.difference:+.4g}",
        )
        for pair in found.pairs
    ]  # fmt: skip
    return text_table(("stage", "metric", first, second, "difference"), rows)
