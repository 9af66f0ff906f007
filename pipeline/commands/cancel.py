"""asl-pipe cancel."""

from pathlib import Path
from typing import Annotated

import typer


def cancel(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME...", help="pretrain@asl, a job id, or a fingerprint."),
    ] = None,
    blocked: Annotated[
        bool,
        typer.Option("--blocked", help="Your jobs that wait for one that did not succeed."),
    ] = False,
    everything: Annotated[
        bool, typer.Option("--all", help="All your jobs of this project.")
    ] = False,
) -> None:
    """Cancel jobs. Checkpoints stay: submitted again, a job resumes from them.

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
        raise UserError("say what to cancel: NAME..., --blocked or --all")
    project = find_project(Path.cwd())
    scheduler = find_scheduler(project.scratch)
    reports = job_reports(project.root, scheduler, DvcCache())
    chosen = [pick(reports, name, relative_suite(project)) for name in names or ()]
    own = [r for r in reports if r.attempt is None or r.attempt.user == getpass.getuser()]
    chosen += [r for r in own if everything or (blocked and r.verdict is Verdict.BLOCKED)]
    ended = end(chosen, scheduler)
    for report in ended:
        typer.echo(f"{report.job.name}: cancelling job {report.job_id}")
    if not ended:
        typer.echo("no live job to cancel")
