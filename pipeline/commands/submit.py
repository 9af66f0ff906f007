"""asl-pipe submit."""

from pathlib import Path
from typing import Annotated

import typer


def submit(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME...", help="Entries of the stage; default: all."),
    ] = None,
    stage: Annotated[
        str | None, typer.Option(help="prepare, pretrain, linprobe, finetune, ...")
    ] = None,
    downstream: Annotated[
        bool, typer.Option("--downstream", help="Also the runs that depend on them.")
    ] = False,
    everything: Annotated[
        bool, typer.Option("--all", help="All stages of the suite except the report.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Run the named ones even if they have results.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan; submit nothing.")
    ] = False,
) -> None:
    """Submit stages to the scheduler that cluster.yaml names, and return.

    Run it in a suite's folder. A run with a result is skipped, one with a live job is left to that
    job, and one whose job was lost resumes from its checkpoint. Code and parameters are frozen:
    later edits do not reach a job. When jobs have finished, `dvc repro` adopts their results.

    Examples: asl-pipe submit --stage pretrain asl; asl-pipe submit --all --dry-run
    """
    from pipeline.commands.plan import show_plan
    from pipeline.commands.printing import console, text_table
    from pipeline.errors import UserError
    from pipeline.project import find_project
    from pipeline.results.dvc_cache import DvcCache
    from pipeline.results.git import Git
    from pipeline.schedulers.find import find_scheduler
    from pipeline.schedulers.port import SchedulerError
    from pipeline.submission.plan import SubmissionServices, Wanted, make_plan
    from pipeline.submission.submit import Outcome, follow
    from pipeline.submission.submit import submit as carry_out

    if everything == (stage is not None):
        raise UserError("say what to submit: --stage STAGE [NAME...] or --all")
    if names and stage is None:
        raise UserError("names are entries of a stage: add --stage")
    project = find_project(Path.cwd())
    services = SubmissionServices(DvcCache(), find_scheduler(project.scratch), Git())
    wanted = Wanted(stage, tuple(names or ()), downstream, force)
    plan = make_plan(project, wanted, services)
    if dry_run:
        show_plan(plan)
        return
    results = carry_out(plan, services)
    rows = [(r.name, str(r.outcome), r.job_id or "", r.fingerprint[:10], r.detail) for r in results]
    console().print(text_table(("stage", "outcome", "job", "fingerprint", ""), rows))
    try:
        follow_up = follow(plan, services, results)
    except (SchedulerError, OSError) as error:
        typer.echo(
            f"no job looks after these: {error}; nothing will be retried and nobody told, until "
            "asl-pipe submit, called again, has made a follow-up",
            err=True,
        )
        raise typer.Exit(1) from None
    if follow_up is not None:
        typer.echo(
            f"job {follow_up.job_id} looks after them when they have ended: it retries and tells "
            "as cluster.yaml says"
        )
    if any(result.outcome is Outcome.REFUSED for result in results):
        raise typer.Exit(1)
    if any(result.outcome in (Outcome.HELD, Outcome.WAITING) for result in results):
        typer.echo("not everything is submitted yet; run the same command again later", err=True)
        raise typer.Exit(75)
