"""asl-pipe ui."""

from pathlib import Path
from typing import Annotated

import typer


def ui(
    port: Annotated[int, typer.Option(help="Port on this machine.", min=1, max=65535)] = 5000,
) -> None:
    """Open the tracker's pages on the project's runs.

    Stop it with Ctrl-C. It serves this machine only; from another one, tunnel the port:
    ssh -L 5000:localhost:5000 HOST

    Example: asl-pipe ui --port 5001
    """
    from pipeline.errors import UserError
    from pipeline.project import find_project
    from pipeline.tracking.find import find_kind

    root = find_project(Path.cwd(), "demo").root
    kind = find_kind(root)
    if kind.serve is None:
        raise UserError(f"{kind.title} has no pages that asl-pipe could serve; open it yourself")
    kind.serve(root, port, typer.echo)
