"""asl-pipe ui."""

from pathlib import Path
from typing import Annotated

import typer


def ui(
    port: Annotated[int, typer.Option(help="Port on this machine.", min=1, max=65535)] = 5000,
) -> None:
    """Open the tracker's pages on the project's runs.

    What they show as current is what dvc.lock names now. Stop it with Ctrl-C. It serves this
    machine only; from another one, tunnel the port: ssh -L 5000:localhost:5000 HOST

    Example: asl-pipe ui --port 5001
    """
    from pipeline.errors import NotFinishedError, UserError
    from pipeline.project import find_project
    from pipeline.tracking.current import follow_locks
    from pipeline.tracking.find import find_kind

    root = find_project(Path.cwd(), "demo").root
    kind = find_kind(root)
    if kind.serve is None:
        raise UserError(f"{kind.title} has no pages that asl-pipe could serve; open it yourself")
    try:
        follow_locks(root)
    except NotFinishedError as error:  # what there is can be looked at all the same
        typer.echo(str(error), err=True)
    kind.serve(root, port, typer.echo)
