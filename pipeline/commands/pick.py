"""asl-pipe pick."""

from pathlib import Path
from typing import Annotated

import typer


def pick(
    suite: Annotated[str, typer.Argument(metavar="SUITE", help="demo, or a folder under suites/.")],
    experiment: Annotated[
        str | None, typer.Argument(metavar="EXPERIMENT", help="As suite.yaml has it.")
    ] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Choose although runs are missing.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the change; write nothing.")
    ] = False,
) -> None:
    """Write the best of a sweep into suite.yaml, with the reason, and expand it.

    The sweep of EXPERIMENT keeps the best combination alone, by the metric that `asl-pipe sweep`
    ranks by. Its runs keep their names and results: nothing is trained again. Everything else in
    the file stays as it is; a comment says when, by what, of how many runs and by which margin.
    Refuses while runs are missing or are not those of dvc.lock. In the suite's folder SUITE may be
    left out.

    Example: asl-pipe pick mine mae --dry-run
    """
    import datetime
    import difflib

    from pipeline.commands.expand import write_expanded
    from pipeline.config.expand import SUITE_FILE
    from pipeline.errors import UserError
    from pipeline.project import find_project, is_suite, named_suite
    from pipeline.tables.collect import read_suite
    from pipeline.tables.sweep import sweep_tables
    from pipeline.tables.sweep_choice import choose
    from pipeline.writing import write_bytes

    here, wanted = Path.cwd(), suite
    if experiment is None:
        if not is_suite(here) or named_suite(find_project(here).root, suite) is not None:
            raise UserError("asl-pipe pick wants SUITE and EXPERIMENT; name the experiment")
        wanted, experiment = None, suite
    project = find_project(here, wanted)
    path = project.suite / SUITE_FILE
    if not path.is_file():
        raise UserError(
            f"{path} does not exist; a sweep is written there, and nothing else is picked"
        )
    results = read_suite(project)
    table = sweep_tables(results, experiment)[0]
    text = path.read_bytes().decode("utf-8")
    today = datetime.date.today().isoformat()
    choice = choose(results, table, text, path, today, partial=partial)
    for line in choice.reason:
        typer.echo(line)
    if dry_run:
        lines = difflib.unified_diff(
            text.splitlines(), choice.text.splitlines(), SUITE_FILE, SUITE_FILE, lineterm="", n=1
        )
        typer.echo("\n".join(["", *lines]))
        return
    write_bytes(path, choice.text.encode())
    typer.echo(f"written: {project.shown(path)}")
    write_expanded(project)
