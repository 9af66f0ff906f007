"""asl-pipe cancel."""

from pathlib import Path
from typing import Annotated

import typer


def cancel(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME...", help="pretrain@asl, a job's id, or a fingerprint."),
    ] = None,
    blocked: Annotated[
        bool,
        typer.Option("--blocked", help="All of yours that wait for a job that did not succeed."),
    ] = False,
    everything: Annotated[
        bool, typer.Option("--all", help="All your jobs of this project.")
    ] = False,
) -> None:
    """End jobs. What they have done so far stays; submitted again, they go on from there.

    Examples: asl-pipe cancel pretrain@asl; asl-pipe cancel --blocked
    """
    import getpass

    from pipeline.errors import UserError
    from pipeline.jobs.verdict import Verdict
    from pipeline.project import find_project
    from pipeline.results.dvc_cache import DvcCache
    from pipeline.schedulers.find import find_scheduler
    from pipeline.submission.cancel import cancel as end
    from pipeline.submission.job_reports import job_reports
    from pipeline.submission.pick import pick
    from pipeline.submission.plan import relative_suite

    if not (names or blocked or everything):
        raise UserError("name what to cancel: NAME..., --blocked or --all")
    project = find_project(Path.cwd())
    scheduler = find_scheduler(project.scratch)
    reports = job_reports(project.root, scheduler, DvcCache())
    chosen = [pick(reports, name, relative_suite(project)) for name in names or ()]
    own = [r for r in reports if r.attempt is None or r.attempt.user == getpass.getuser()]
    chosen += [r for r in own if everything or (blocked and r.verdict is Verdict.BLOCKED)]
    ended = end(chosen, scheduler)
    for report in ended:
        typer.echo(f"{report.job.name}: job {report.job_id} is told to end")
    if not ended:
        typer.echo("none of them has a live job")
