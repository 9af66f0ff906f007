"""asl-pipe sync."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from asl_core.wording import counted


def sync(
    fingerprint: Annotated[
        str | None,
        typer.Argument(
            metavar="FINGERPRINT", help="One run: the start of its folder name in .asl/jobs."
        ),
    ] = None,
    outputs: Annotated[
        Path | None, typer.Option(help="Folder with that run's files; default: searched.")
    ] = None,
    follow: Annotated[
        bool,
        typer.Option("--follow", help="Keep going: for one run to its end, for all until Ctrl-C."),
    ] = False,
    pull: Annotated[
        bool, typer.Option("--pull", help="First get this suite's results from DVC's remote.")
    ] = False,
    push: Annotated[
        bool,
        typer.Option(
            "--push", help="Then send results to DVC's remote, finished ones of jobs included."
        ),
    ] = False,
    remote: Annotated[
        str | None, typer.Option("--remote", "-r", help="Name of the remote; default: DVC's.")
    ] = None,
) -> None:
    """Adopt finished results, and send journals to the tracker.

    In a suite's folder, results that jobs have filed are checked out and written to dvc.lock, as
    dvc repro would do; no stage runs and nothing is committed: the git command is printed. Then all
    journals that the tracker lacks are sent: of live jobs, of runs that were killed, of runs that
    ended while it was unreachable, and of results that came by dvc pull. What the tracker shows as
    current is then what dvc.lock names. Running it twice adds nothing. Stages start it in the
    background for their own run. With --follow it looks every half minute; if the login node
    forbids long processes, run it from cron.

    With --push, what dvc push --run-cache sends, and the files of finished results that no dvc.lock
    names, which DVC leaves behind. With --pull, what somebody has pushed for the runs of this
    suite's params.yaml, before it is adopted.

    Example: asl-pipe sync
    """
    from pipeline.errors import AslPipeError, UserError
    from pipeline.project import find_project
    from pipeline.tracking.current import follow_locks
    from pipeline.tracking.find import find_kind, find_tracker
    from pipeline.tracking.sync import follow_all, follow_run, sync_journals, sync_run

    project = find_project(Path.cwd(), "demo")
    if fingerprint is not None and (pull or push):
        raise UserError("--pull and --push are for a whole suite: name no FINGERPRINT with them")
    if remote is not None and not (pull or push):
        raise UserError("--remote says where --push sends to or --pull gets from; add one of them")
    if fingerprint is not None:
        tracker = find_tracker(project.root)
        if follow:
            follow_run(project.root, fingerprint, tracker, outputs)
        else:
            sync_run(project.root, fingerprint, tracker, outputs)
        follow_locks(project.root, trusting=True)
        return
    problem = None
    if pull:
        _pull(remote)
    try:
        _adopt()
    except AslPipeError as error:  # journals do not wait for it
        problem = error
    if push:
        _push(remote)
    if follow:
        if problem is not None:
            typer.echo(f"nothing was adopted: {problem}", err=True)
        settle = partial(follow_locks, project.root, trusting=True)
        follow_all(project.root, find_tracker(project.root), settle)
    kind = find_kind(project.root)
    count = sync_journals(project.root, kind.connect(project.root, False))
    follow_locks(project.root)
    how = "; asl-pipe ui shows them" if kind.serve is not None else ""
    typer.echo(f"{counted(count, 'run')} {'is' if count == 1 else 'are'} in {kind.title}{how}")
    if problem is not None:
        raise problem


def _pull(remote: str | None) -> None:
    """Get the results of the present suite's runs."""
    from pipeline.project import find_project
    from pipeline.results.dvc_cache import DvcCache
    from pipeline.submission.sharing import pull_results

    count = pull_results(find_project(Path.cwd()), DvcCache(), remote)
    typer.echo(f"{counted(count, 'file')} came from DVC's remote")


def _push(remote: str | None) -> None:
    """Send the results of the present suite, and what jobs have finished."""
    from pipeline.project import find_project
    from pipeline.results.dvc_cache import DvcCache
    from pipeline.schedulers.find import find_scheduler
    from pipeline.submission.job_reports import job_reports
    from pipeline.submission.sharing import push_results

    project, cache = find_project(Path.cwd()), DvcCache()
    reports = job_reports(project.root, find_scheduler(project.scratch), cache)
    count = push_results(project, cache, reports, remote)
    typer.echo(f"{counted(count, 'file')} sent to DVC's remote")


def _adopt() -> None:
    """Take finished results over into the suite of the present folder, if it is one."""
    from pipeline.project import find_project
    from pipeline.results.dvc_cache import DvcCache
    from pipeline.submission.adoption import adopt, files_for_git

    if not all(Path(name).is_file() for name in ("params.yaml", "dvc.yaml")):
        return
    adopted = adopt(find_project(Path.cwd()), DvcCache())
    if adopted:
        typer.echo(f"adopted: {', '.join(adopted)}")
        typer.echo(f"git add {' '.join(files_for_git(adopted))}")
