"""asl-pipe expand."""

from pathlib import Path
from typing import Annotated

import typer


def expand(
    suite: Annotated[
        str | None, typer.Argument(metavar="SUITE", help="demo, or a folder under suites/.")
    ] = None,
) -> None:
    """Write params.yaml from suite.yaml: an experiment for each seed.

    A suite whose params.yaml is written by hand needs none of this. Without SUITE: the suite of the
    present folder.

    Example: asl-pipe expand table7-mini
    """
    from pipeline.config.expand import SUITE_FILE, expansion_of, params_text
    from pipeline.project import find_project
    from pipeline.writing import write_bytes

    project = find_project(Path.cwd(), suite)
    expanded = expansion_of(project.suite)
    if expanded is None:
        typer.echo(f"{project.suite.name}: no {SUITE_FILE}; params.yaml stays as it is")
        return
    text = params_text(expanded)
    file = project.params_file
    changed = not file.is_file() or file.read_text(encoding="utf-8") != text
    if changed:
        write_bytes(file, text.encode())
    experiments = len(expanded["experiments"])
    typer.echo(f"{file.relative_to(project.root)}: {experiments} experiments, "
               f"{'written' if changed else 'up to date'}")  # fmt: skip
