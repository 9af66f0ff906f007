"""asl-pipe cost."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pipeline.project import Project


class CostFormat(StrEnum):
    """How costs are printed."""

    text = "text"
    md = "md"
    csv = "csv"
    json = "json"


def cost(
    suite: Annotated[
        str | None, typer.Argument(metavar="SUITE", help="demo, or a folder under suites/.")
    ] = None,
    format: Annotated[CostFormat, typer.Option(help="Output format.")] = CostFormat.text,
) -> None:
    """Show what a suite's runs took: hours, GPU-hours, energy, CO2, price, stage by stage.

    All starts count, those too that were preempted or failed; what of them was lost is shown beside
    it. From the scheduler's accounting where it keeps one, else from the jobs' records, else from
    the journals of the runs. Factors of price and CO2 are under `cost` in cluster.yaml. n/a: nobody
    knows. Without SUITE: the suite in the current folder.

    Example: asl-pipe cost cifar10-mini
    """
    import time

    from pipeline.commands.printing import console, text_table
    from pipeline.config.cluster import read_cluster
    from pipeline.config.params import load_params
    from pipeline.project import find_project
    from pipeline.schedulers.find import find_scheduler
    from pipeline.submission.costs import suite_costs
    from pipeline.tables.spending import spending
    from pipeline.tables.spending_formats import csv_text, json_text, markdown, notes, table

    project = find_project(Path.cwd(), suite)
    cluster = read_cluster(project.cluster_file)
    params = load_params(project.params_file)
    found = suite_costs(
        project.root, project.suite, params, find_scheduler(project.scratch), time.time(),
        cluster.scheduler,
    )  # fmt: skip
    factors = cluster.cost
    rows = spending(found.current, found.others, factors, _projected_hours(project))
    if format is CostFormat.text and not rows:
        typer.echo("nothing has run yet")
    elif format is CostFormat.text:
        console().print(text_table(*table(rows, factors)))
        for note in notes(rows, factors):
            typer.echo(note)
    elif format is CostFormat.json:
        runs = [*found.current, *found.others]
        typer.echo(json_text(rows, factors, runs, found.problems), nl=False)
    else:
        write = {"md": markdown, "csv": csv_text}[format.value]
        typer.echo(write(rows, factors), nl=False)
    for problem in found.problems:
        typer.echo(f"asl-pipe: {problem}", err=True)


def _projected_hours(project: "Project") -> dict[str, float]:
    """Return the hours that the newest rehearsal has said of each run."""
    from pipeline.rehearsal.report import read_report

    report = read_report(project)
    if report is None:
        return {}
    return {
        name: estimate.each.expected / 3600
        for estimate in report.estimates
        if estimate.each is not None
        for name in estimate.names
    }
