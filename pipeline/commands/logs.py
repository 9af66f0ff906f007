"""asl-pipe logs."""

from pathlib import Path
from typing import Annotated

import typer


def logs(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="pretrain@asl, a job id, or part of a fingerprint."),
    ],
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Keep printing until the job has ended.")
    ] = False,
    lines: Annotated[
        int, typer.Option("--lines", "-n", min=1, help="Number of lines to start with.")
    ] = 40,
) -> None:
    """Print the log of a job.

    A job of which this project has no record, an older attempt or one whose record was lost, is
    found by its id.

    Example: asl-pipe logs pretrain@asl -f
    """
    import time

    from pipeline.errors import UserError
    from pipeline.jobs.logs import follow as go_on
    from pipeline.jobs.logs import tail
    from pipeline.project import find_project
    from pipeline.results.dvc_cache import DvcCache
    from pipeline.schedulers.find import find_scheduler
    from pipeline.submission.cancel import ENDED
    from pipeline.submission.job_reports import Queue, job_records, report_on
    from pipeline.submission.pick import pick
    from pipeline.submission.plan import relative_suite
    from pipeline.submission.unrecorded import find_unrecorded

    project = find_project(Path.cwd())
    scheduler = find_scheduler(project.scratch)
    try:
        chosen = pick(job_records(project.root), name, relative_suite(project))
        paths, silent = chosen.paths, f"{chosen.job.name} has printed nothing yet"
    except UserError:
        found = find_unrecorded(project.scratch, name, Queue(scheduler), scheduler.explain)
        if found is None:
            raise
        if found.paths is None:
            typer.echo(f"{found.said}; this project has neither a record of it nor its folder")
            return
        typer.echo(f"{found.said}; this project has no record of it", err=True)
        paths, silent, job_id = found.paths, "it has printed nothing yet", found.job_id

        def has_ended() -> bool:
            queue = Queue(scheduler)
            lives = any(job.job_id == job_id and not job.has_ended for job in queue.jobs)
            return queue.error is None and not lives
    else:

        def has_ended() -> bool:
            report = report_on(
                paths, project.root, Queue(scheduler), DvcCache(), None, time.time()
            )  # fmt: skip
            return report is None or report.verdict in ENDED

    if not follow:
        text = tail(paths, lines)
        typer.echo(text or silent, nl=not text)
        return
    for text in go_on(paths, lines, has_ended):
        typer.echo(text, nl=False)
