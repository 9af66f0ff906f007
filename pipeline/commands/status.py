"""asl-pipe status."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from pipeline.schedulers.port import Scheduler
    from pipeline.submission.job_reports import JobReport
    from pipeline.submission.status import Explanations

SECONDS = 5.0


def status(
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Stay, and refresh every five seconds.")
    ] = False,
    everything: Annotated[
        bool, typer.Option("--all", help="Also jobs that ended more than a day ago.")
    ] = False,
) -> None:
    """Show every job: state, node, step, loss, time left, restarts.

    States come from evidence: the job's own record, the queue, the files in the cache. UNKNOWN: the
    scheduler does not answer. SETTLING: the job is starting or ending, look again later.

    Example: asl-pipe status --watch
    """
    import time

    from rich.live import Live

    from pipeline.commands.printing import console
    from pipeline.errors import UserError
    from pipeline.jobs.verdict import Patience
    from pipeline.project import find_project
    from pipeline.results.dvc_cache import DvcCache
    from pipeline.results.git import Git
    from pipeline.schedulers.find import find_scheduler
    from pipeline.submission.follow_up import FOLDER as FOLLOW_UPS
    from pipeline.submission.follow_up import follow_up_problems
    from pipeline.submission.job_reports import Queue, job_reports
    from pipeline.submission.put_back import never_recorded, unadopted_reports
    from pipeline.submission.status import Explanations

    project = find_project(Path.cwd(), "demo")
    scheduler = find_scheduler(project.scratch)
    explanations = Explanations(scheduler.explain)

    def look() -> "tuple[Table | None, list[JobReport]]":
        reports = job_reports(project.root, scheduler, DvcCache())
        table = _table(reports, explanations, scheduler, everything)
        return table, reports

    if not watch:
        table, reports = look()
        if table is None:
            typer.echo("no jobs; asl-pipe submit creates them")
        else:
            console().print(table)
        if (project.scratch / FOLLOW_UPS).is_dir():
            lines = follow_up_problems(
                project.scratch, Queue(scheduler), time.time(), Patience().silence_s
            )
            for line in lines:
                typer.echo(line, err=True)
        left = unadopted_reports(project.root, reports)
        if left:  # what a commit names has been adopted, though its settings have changed since
            with contextlib.suppress(UserError):  # no git
                left = never_recorded(left, Git().recorded(project.root))
        if left:
            names = ", ".join(sorted({each.job.name for each in left}))
            typer.echo(
                f"in no dvc.lock yet: {names}; before dvc push or dvc gc, which know only what is "
                "in one, run dvc repro or asl-pipe sync in the suite's folder"
            )
        return
    with Live(console=console(), auto_refresh=False) as live:
        while True:
            live.update(look()[0] or "no jobs", refresh=True)
            time.sleep(SECONDS)


def _table(
    reports: "list[JobReport]",
    explanations: "Explanations",
    scheduler: "Scheduler",
    everything: bool,
) -> "Table | None":
    import time

    from pipeline.commands.printing import text_table
    from pipeline.submission.status import HEADINGS, recent, status_rows, with_history

    now = time.time()
    shown = explanations.added_to(reports if everything else recent(reports, now))
    shown = with_history(shown, scheduler)
    return text_table(HEADINGS, status_rows(shown, now)) if shown else None
