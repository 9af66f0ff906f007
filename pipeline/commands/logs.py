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

    Example: asl-pipe logs pretrain@asl -f
    """
    import time

    from pipeline.jobs.logs import follow as go_on
    from pipeline.jobs.logs import tail
    from pipeline.project import find_project
    from pipeline.results.dvc_cache import DvcCache
    from pipeline.schedulers.find import find_scheduler
    from pipeline.submission.cancel import ENDED
    from pipeline.submission.job_reports import Queue, job_records, report_on
    from pipeline.submission.pick import pick
    from pipeline.submission.plan import relative_suite

    project = find_project(Path.cwd())
    chosen = pick(job_records(project.root), name, relative_suite(project))
    if not follow:
        text = tail(chosen.paths, lines)
        typer.echo(text or f"{chosen.job.name} has printed nothing yet", nl=not text)
        return
    cache, scheduler = DvcCache(), find_scheduler(project.scratch)

    def has_ended() -> bool:
        report = report_on(
            chosen.paths, project.root, Queue(scheduler), cache, None, time.time()
        )  # fmt: skip
        return report is None or report.verdict in ENDED

    for text in go_on(chosen.paths, lines, has_ended):
        typer.echo(text, nl=False)
