"""asl-pipe sync."""

from pathlib import Path
from typing import Annotated

import typer


def sync(
    fingerprint: Annotated[
        str | None,
        typer.Argument(
            metavar="FINGERPRINT", help="One run: the beginning of its name in .asl/jobs."
        ),
    ] = None,
    outputs: Annotated[
        Path | None, typer.Option(help="Folder with the one run's files; found if not given.")
    ] = None,
    follow: Annotated[
        bool,
        typer.Option(
            "--follow", help="Go on while runs are made: one to its end, all until Ctrl-C."
        ),
    ] = False,
) -> None:
    """Take finished results over, and bring all journals to the tracker, or one.

    In the folder of a suite, results that jobs have filed and dvc.lock does not have are laid out
    and written into dvc.lock, as dvc repro would; no stage is run and nothing is committed: the
    line for git is printed. Journals are of runs that ended while it could not be reached,
    were killed, or came from elsewhere, of jobs that run now too. A second time adds nothing.
    Stages start it for their own run; for one run it prints nothing, and does not look whether the
    run was deleted there. With --follow it looks every half minute; where the login node
    forbids that, call it when you like, or from cron.

    Example: asl-pipe sync
    """
    from pipeline.errors import AslPipeError
    from pipeline.project import find_project
    from pipeline.tracking.find import find_kind, find_tracker
    from pipeline.tracking.sync import follow_all, follow_run, sync_journals, sync_run

    project = find_project(Path.cwd(), "demo")
    if fingerprint is not None:
        tracker = find_tracker(project.root)
        if follow:
            follow_run(project.root, fingerprint, tracker, outputs)
        else:
            sync_run(project.root, fingerprint, tracker, outputs)
        return
    problem = None
    try:
        _adopt()
    except AslPipeError as error:  # journals do not wait for it
        problem = error
    if follow:
        if problem is not None:
            typer.echo(f"nothing is taken over: {problem}", err=True)
        follow_all(project.root, find_tracker(project.root))
    kind = find_kind(project.root)
    count = sync_journals(project.root, kind.connect(project.root, False))
    how = "; asl-pipe ui shows them" if kind.serve is not None else ""
    typer.echo(f"{count} runs are in {kind.title}{how}")
    if problem is not None:
        raise problem


def _adopt() -> None:
    """Take finished results over into the suite of the present folder, if it is one."""
    from pipeline.project import find_project
    from pipeline.results.dvc_cache import DvcCache
    from pipeline.submission.adoption import adopt, files_for_git

    if not all(Path(name).is_file() for name in ("params.yaml", "dvc.yaml")):
        return
    adopted = adopt(find_project(Path.cwd()), DvcCache())
    if adopted:
        typer.echo(f"taken over: {', '.join(adopted)}")
        typer.echo(f"git add {' '.join(files_for_git(adopted))}")
