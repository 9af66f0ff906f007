"""asl-pipe plan."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from pipeline.actions.plan import Plan


def plan(
    suite: Annotated[
        str | None, typer.Argument(metavar="SUITE", help="demo, or a folder under suites/.")
    ] = None,
) -> None:
    """Show what is stale, why, and what `submit --all` would do about it.

    Jobs that live for parameters or code as they were are shown too, with what has changed since.

    Example: asl-pipe plan cifar10-mini
    """
    from pipeline.actions.plan import Services, Wanted, make_plan
    from pipeline.adapters.dvc_cache import DvcCache
    from pipeline.adapters.git import Git
    from pipeline.adapters.schedulers import find_scheduler
    from pipeline.commands.printing import console
    from pipeline.project import find_project

    project = find_project(Path.cwd(), suite)
    found = make_plan(
        project, Wanted(), Services(DvcCache(), find_scheduler(project.scratch), Git())
    )
    console().print(plan_table(found))
    if found.queue_error is not None:
        typer.echo(f"the queue is not known: {found.queue_error}", err=True)


def plan_table(plan: "Plan") -> "Table":
    """Return a plan as a table: what to do, why, with what, after what."""
    from pipeline.commands.printing import text_table

    rows = []
    for entry in plan.entries:
        why = "; ".join(entry.why[:3]) + (
            f"; {len(entry.why) - 3} more" if len(entry.why) > 3 else ""
        )
        rows.append(
            (
                entry.name, str(entry.action), why or entry.detail,
                asked_of_slurm(entry.slurm) if entry.why else "", ", ".join(entry.needs),
            )
        )  # fmt: skip
        for report, changes in entry.others:
            text = f"job {report.job_id} runs for other settings: {', '.join(changes) or 'none'}"
            rows.append(("", str(report.verdict), text, "", ""))
    return text_table(("stage", "to do", "why", "resources", "after"), rows)


def asked_of_slurm(slurm: object) -> str:
    """Return the resources of a job in a few words, defaults left out."""
    import dataclasses

    shown = ("partition", "account", "qos", "nodes", "tasks_per_node", "gpus", "cpus", "memory",
             "time", "constraint")  # fmt: skip
    fields = {f.name: f.default for f in dataclasses.fields(slurm)}  # type: ignore[arg-type]
    return ", ".join(
        f"{name} {getattr(slurm, name)}" for name in shown if getattr(slurm, name) != fields[name]
    )
