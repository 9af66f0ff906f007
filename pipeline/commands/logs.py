"""asl-pipe logs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pipeline.actions.states import JobReport


def logs(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="pretrain@asl, a job's id, or part of a fingerprint."),
    ],
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")
    ] = False,
    lines: Annotated[
        int, typer.Option("--lines", "-n", min=1, help="How many to begin with.")
    ] = 40,
) -> None:
    """Print what a job has printed.

    Example: asl-pipe logs pretrain@asl -f
    """
    from pipeline.actions.cancel import ENDED
    from pipeline.actions.logs import follow as go_on
    from pipeline.actions.logs import tail
    from pipeline.actions.pick import pick
    from pipeline.actions.plan import relative_suite
    from pipeline.actions.states import job_reports
    from pipeline.adapters.dvc_cache import DvcCache
    from pipeline.adapters.schedulers import find_scheduler
    from pipeline.project import find_project

    project = find_project(Path.cwd())
    cache, scheduler = DvcCache(), find_scheduler(project.scratch)

    def look() -> "JobReport":
        reports = job_reports(project.root, scheduler, cache)
        return pick(reports, name, relative_suite(project))

    report = look()
    if not follow:
        text = tail(report.paths, lines)
        typer.echo(text or f"{report.job.name} has printed nothing yet", nl=not text)
        return
    for text in go_on(report.paths, lines, lambda: look().verdict in ENDED):
        typer.echo(text, nl=False)
