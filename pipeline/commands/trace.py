"""asl-pipe trace."""

from pathlib import Path
from typing import Annotated

import typer


def trace(
    table: Annotated[
        str, typer.Argument(metavar="TABLE", help="A suite, or a table of the current suite.")
    ],
    row: Annotated[
        str, typer.Argument(metavar="ROW", help="Name of a row, or of one of its experiments.")
    ],
    metric: Annotated[
        str, typer.Argument(metavar="METRIC", help="lp_acc1, or the column header: LP.")
    ],
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Hash the files again and recompute the number."),
    ] = False,
) -> None:
    """Print where a table's number came from, run by run, back to data, code and machine.

    With --verify every file behind the number is hashed again and compared with dvc.lock, and the
    number is recomputed from the stored weights; nothing is trained. Exit code 1 if something no
    longer holds, or a metrics file is not the one that dvc.lock records.

    Example: asl-pipe trace demo asl LP --verify
    """
    from pipeline.commands.printing import end_with_doubts
    from pipeline.execution.trace import facts, headline
    from pipeline.execution.trace import trace as trace_number
    from pipeline.execution.trace import verify as check_again
    from pipeline.project import Project, find_project, named_suite
    from pipeline.results.dvc_cache import DvcCache
    from pipeline.tables.collect import doubts

    here = find_project(Path.cwd(), None if _in_a_suite() else "demo")
    named = named_suite(here.root, table)
    project = here if named is None else Project(here.root, named)
    suite, traced = trace_number(project, table, row, metric)
    typer.echo(headline(traced))
    for number, link in enumerate(traced.links):
        made = "" if link.value is not None else ", which made the encoder"
        if made and link.result.key != traced.links[number - 1].result.key:
            made = ", whose weights that one began with"
        typer.echo(f"\n{link.name}{made}")
        for kind, text in facts(suite, link, traced.metric):
            typer.echo(f"  {kind:8} {text}")
    if not verify:
        end_with_doubts(doubts(link.result for link in traced.links))
        return
    typer.echo("\nverification")
    holds = True
    for check in check_again(project, suite, traced, DvcCache()):
        holds &= check.holds
        typer.echo(f"  {'ok' if check.holds else 'CHANGED':8} {check.what}: {check.detail}")
    typer.echo("the number holds" if holds else "the number no longer holds")
    if not holds:
        raise typer.Exit(1)


def _in_a_suite() -> bool:
    return Path("params.yaml").is_file()
