"""asl-pipe expand."""

from pathlib import Path
from typing import Annotated

import typer

from asl_core.wording import counted


def expand(
    suite: Annotated[
        str | None, typer.Argument(metavar="SUITE", help="demo, or a folder under suites/.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every suite of the project.")] = False,
) -> None:
    """Write the generated files of a suite.

    dvc.yaml is generated from the table of stages, .dvc/config from the one at the root: a suite is
    a DVC project of its own that shares the root's cache and remotes. If there is a suite.yaml,
    params.yaml is generated from it, with one experiment per seed; otherwise params.yaml is left
    alone. Without SUITE: the suite in the current folder.

    Examples: asl-pipe expand table7-mini; asl-pipe expand --all
    """
    from pipeline.config.expand import expansion_of, params_text
    from pipeline.project import Project, find_project, suite_folders
    from pipeline.results.suite_project import write_suite_project
    from pipeline.writing import write_bytes

    project = find_project(Path.cwd(), suite if suite or not everything else "demo")
    folders = suite_folders(project.root).values() if everything else [project.suite]
    for folder in folders:
        changed: list[str] = []
        expanded, file = expansion_of(folder), Project(project.root, folder).params_file
        if expanded is not None:
            text = params_text(expanded)
            if not file.is_file() or file.read_text(encoding="utf-8") != text:
                write_bytes(file, text.encode())
                changed.append(
                    f"params.yaml ({counted(len(expanded['experiments']), 'experiment')})"
                )
        changed += write_suite_project(folder, project.root)  # from params.yaml as it is now
        name = Project(project.root, folder).label
        written = f"written: {', '.join(changed)}" if changed else "up to date"
        typer.echo(f"{name}: {written}")
