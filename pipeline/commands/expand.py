"""asl-pipe expand."""

from pathlib import Path
from typing import Annotated

import typer


def expand(
    suite: Annotated[
        str | None, typer.Argument(metavar="SUITE", help="demo, or a folder under suites/.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every suite of the project.")] = False,
) -> None:
    """Write a suite's dvc.yaml, and its params.yaml where a suite.yaml says what it holds.

    dvc.yaml is the same in every suite and follows from the stages that there are. suite.yaml names
    seeds once; params.yaml has an experiment for each. A params.yaml written by hand stays as it
    is. Without SUITE: the suite of the present folder.

    Examples: asl-pipe expand table7-mini; asl-pipe expand --all
    """
    from pipeline.config.dag import FILE_NAME
    from pipeline.config.expand import SUITE_FILE, expansion_of, params_text
    from pipeline.project import Project, find_project, suite_folders
    from pipeline.results.code import dag_of

    project = find_project(Path.cwd(), suite if suite or not everything else "demo")
    folders = suite_folders(project.root).values() if everything else [project.suite]
    for folder in folders:
        said = [f"{FILE_NAME} {_write(folder / FILE_NAME, dag_of(folder))}"]
        expanded = expansion_of(folder)
        if expanded is None:
            said.append(f"params.yaml stays as it is, for there is no {SUITE_FILE}")
        else:
            written = _write(Project(project.root, folder).params_file, params_text(expanded))
            said.append(f"params.yaml, {len(expanded['experiments'])} experiments, {written}")
        name = "demo" if folder == project.root else folder.name
        typer.echo(f"{name}: {'; '.join(said)}")


def _write(file: Path, text: str) -> str:
    """Write a file unless it is right, and say which of both."""
    from pipeline.writing import write_bytes

    if file.is_file() and not file.is_symlink() and file.read_text(encoding="utf-8") == text:
        return "up to date"
    file.unlink(missing_ok=True)  # a link of an earlier version leads to another suite's
    write_bytes(file, text.encode())
    return "written"
