"""asl-pipe gc."""

from pathlib import Path
from typing import Annotated

import typer


def gc(
    days: Annotated[
        float, typer.Option(min=0, help="Keep jobs that ended within so many days.")
    ] = 30.0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would go and delete nothing.")
    ] = False,
) -> None:
    """Delete records, checkpoints and logs of old jobs under .asl.

    Keeps jobs that may live, and those whose result is in the working tree or in any commit that
    a branch or tag points at. Results themselves are DVC's and are not touched.

    Example: asl-pipe gc --days 7 --dry-run
    """
    import time

    from pipeline.actions.gc import delete, find_garbage
    from pipeline.actions.states import job_reports
    from pipeline.adapters.dvc_cache import DvcCache
    from pipeline.adapters.git import Git
    from pipeline.adapters.schedulers import find_scheduler
    from pipeline.commands.printing import console, text_table
    from pipeline.project import find_project

    project = find_project(Path.cwd(), "demo")
    reports = job_reports(project.root, find_scheduler(project.scratch), DvcCache())
    referenced = Git().fingerprints(project.root)
    garbage = find_garbage(project.scratch, reports, referenced, time.time(), days)
    if not garbage:
        typer.echo("nothing to delete")
        return
    rows = [(g.folder.name[:12], f"{g.size / 2**20:.1f} MiB", g.why) for g in garbage]
    console().print(text_table(("folder", "size", "why"), rows))
    if dry_run:
        return
    delete(garbage)
    typer.echo(f"{sum(item.size for item in garbage) / 2**20:.1f} MiB freed")
