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
    unadopted: Annotated[
        bool,
        typer.Option("--unadopted", help="Also those whose results no dvc.lock has ever named."),
    ] = False,
) -> None:
    """Delete what old jobs and runs left under .asl: records, checkpoints, logs, frozen code.

    Keeps jobs that may be alive and what they need, and those whose result is in the working tree
    or in a commit that a branch or tag points at. Of the others, runs of `dvc repro` included, a
    journal that the tracker does not have completely is kept until `asl-pipe sync` has sent it.
    Finished results that no dvc.lock has ever named are listed and kept, with their files: `dvc gc`
    would delete these from DVC's cache, and the next asl-pipe command puts them back from .asl.
    Other results are DVC's and are not touched. What deleted runs took stays in `asl-pipe cost`.

    Example: asl-pipe gc --days 7 --dry-run
    """
    import time

    from pipeline.commands.printing import console, text_table
    from pipeline.project import find_project
    from pipeline.results.dvc_cache import DvcCache
    from pipeline.results.git import Git
    from pipeline.schedulers.find import find_scheduler
    from pipeline.schedulers.port import NoSchedulerError, SchedulerError
    from pipeline.submission.costs import keep_costs_of
    from pipeline.submission.garbage import ENDED, delete, find_garbage
    from pipeline.submission.job_reports import job_reports
    from pipeline.submission.put_back import never_recorded, put_back_results
    from pipeline.tracking.find import find_tracker

    project = find_project(Path.cwd(), "demo")
    scratch, cache, scheduler = project.scratch, DvcCache(), find_scheduler(project.scratch)
    tracker = find_tracker(project.root)
    referenced, recorded = Git().fingerprints(project.root), Git().recorded(project.root)
    put_back_results(project.root, cache)
    waiting = never_recorded(job_reports(project.root, scheduler, cache), recorded)
    kept = () if unadopted else [report.paths.folder for report in waiting]

    def look() -> "list[Garbage]":
        reports = job_reports(project.root, scheduler, cache)
        return find_garbage(
            scratch, reports, referenced, time.time(), days, tracker.is_shown, kept
        )  # fmt: skip

    garbage = look()
    if waiting:
        names = ", ".join(sorted({report.job.name for report in waiting}))
        kept_how = "not kept here" if unadopted else "kept here; --unadopted lets them go"
        typer.echo(
            f"in no dvc.lock: {names}; {kept_how}. dvc gc deletes their files from DVC's cache: "
            "asl-pipe sync in the suite's folder adopts them first"
        )
    if garbage:
        rows = [
            (_shown(g.folder, scratch), f"{g.size / 2**20:.1f} MiB", g.why) for g in garbage
        ]  # fmt: skip
        console().print(text_table(("folder", "size", "why"), rows))
    else:
        typer.echo("nothing to delete")
    if dry_run:
        return
    keep_costs_of(scratch, [item.folder for item in garbage], time.time())
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
