"""asl-pipe new."""

from pathlib import Path
from typing import Annotated

import typer


def new(
    suite: Annotated[str, typer.Argument(metavar="SUITE", help="Its name: suites/SUITE.")],
    nearest: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="NEAREST",
            help="Begin from this suite: demo, one of the project, or one of the paper.",
        ),
    ] = None,
) -> None:
    """Write a suite that runs: suites/SUITE, to be edited.

    Without --from: a small one, explained, that trains MAE on composed images in a minute. With
    it a copy under another name, comments and all; runs that both suites have are made once. The
    suites of the paper come with the program, so that `--from table6-mini` works anywhere. An
    existing folder is refused.

    Example: asl-pipe new mine --from table6-mini
    """
    from pipeline.project import find_project
    from pipeline.starting.suites import new_suite

    root = find_project(Path.cwd(), "demo").root
    folder = new_suite(root, suite, nearest)
    files = "suite.yaml" if (folder / "suite.yaml").is_file() else "params.yaml"
    typer.echo(f"written: {folder.relative_to(root)}; edit its {files}, then")
    typer.echo(f"asl-pipe validate {suite} && dvc --cd {folder.relative_to(root)} repro")
