"""asl-pipe gc."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pipeline.submission.garbage import Garbage


def gc(
    days: Annotated[
        float, typer.Option(min=0, help="Keep what ended within this many days.")
    ] = 30.0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be deleted; delete nothing.")
    ] = False,
) -> None:
    """Delete what old jobs and runs left under .asl: records, checkpoints, logs, frozen code.

    Keeps jobs that may be alive and what they need, and those whose result is in the working tree
    or in a commit that a branch or tag points at. Of the others, runs of `dvc repro` included, a
    journal that the tracker does not have completely is kept until `asl-pipe sync` has sent it.
    Results are DVC's and are not touched.

    Example: asl-pipe gc --days 7 --dry-run
    """
    import time

    from pipeline.commands.printing import console, text_table
    from pipeline.project import find_project
    from pipeline.results.dvc_cache import DvcCache
    from pipeline.results.git import Git
    from pipeline.schedulers.find import find_scheduler
    from pipeline.schedulers.port import NoSchedulerError, SchedulerError
    from pipeline.submission.garbage import ENDED, delete, find_garbage
    from pipeline.submission.job_reports import job_reports
    from pipeline.tracking.find import find_tracker

    project = find_project(Path.cwd(), "demo")
    scratch, cache, scheduler = project.scratch, DvcCache(), find_scheduler(project.scratch)
    tracker = find_tracker(project.root)
    referenced = Git().fingerprints(project.root)

    def look() -> "list[Garbage]":
        reports = job_reports(project.root, scheduler, cache)
        return find_garbage(scratch, reports, referenced, time.time(), days, tracker.is_shown)

    garbage = look()
    if garbage:
        rows = [
            (_shown(g.folder, scratch), f"{g.size / 2**20:.1f} MiB", g.why) for g in garbage
        ]  # fmt: skip
        console().print(text_table(("folder", "size", "why"), rows))
    else:
        typer.echo("nothing to delete")
    if dry_run:
        return
    problems = delete(garbage, scratch, look, time.time()) if garbage else []
    freed = sum(item.size for item in garbage if not item.folder.exists())
    if garbage:
        typer.echo(f"{freed / 2**20:.1f} MiB freed")
    try:
        reports = job_reports(project.root, scheduler, cache)
        may_live = [r.paths.folder for r in reports if r.verdict not in ENDED]
        scheduler.remove_old_submissions(may_live)
    except NoSchedulerError:
        pass  # it has none of our files
    except SchedulerError as error:
        problems.append(f"files of old submissions are kept: {error}")
    for problem in problems:
        typer.echo(problem, err=True)


def _shown(folder: Path, scratch: Path) -> str:
    """Return a folder under `.asl` with its long names cut: `jobs/0123456789ab/ckpt`."""
    return "/".join(part[:14] for part in folder.relative_to(scratch).parts)
