"""asl-pipe expand."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from asl_core.wording import counted

if TYPE_CHECKING:
    from pipeline.project import Project


def expand(
    suite: Annotated[
        str | None, typer.Argument(metavar="SUITE", help="demo, or a folder under suites/.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every suite of the project.")] = False,
) -> None:
    """Write the generated files of a suite.

    dvc.yaml is generated from the table of stages, .dvc/config from the one at the root: a suite is
    a DVC project of its own that shares the root's cache and remotes. If there is a suite.yaml,
    params.yaml is generated from it, with one experiment per seed and for each combination of a
    sweep; otherwise params.yaml is left alone. Without SUITE: the suite in the current folder.

    Examples: asl-pipe expand table7-mini; asl-pipe expand --all
    """
    from pipeline.project import Project, find_project, suite_folders

    project = find_project(Path.cwd(), suite if suite or not everything else "demo")
    folders = suite_folders(project.root).values() if everything else [project.suite]
    for folder in folders:
        write_expanded(Project(project.root, folder))


def write_expanded(project: "Project") -> None:
    """Write the generated files of one suite, and say which."""
    from pipeline.config.expand import expansion_of, params_text
    from pipeline.results.suite_project import write_suite_project
    from pipeline.writing import write_bytes

    changed: list[str] = []
    expanded, file = expansion_of(project.suite), project.params_file
    if expanded is not None:
        text = params_text(expanded)
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            write_bytes(file, text.encode())
            changed.append(f"params.yaml ({counted(len(expanded['experiments']), 'experiment')})")
    changed += write_suite_project(project.suite, project.root)  # from params.yaml as it is now
    written = f"written: {', '.join(changed)}" if changed else "up to date"
    typer.echo(f"{project.label}: {written}")
