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
) -> None:
    """Bring all journals into MLflow, or one.

    A second time adds nothing. For runs that ended while MLflow could not be reached, were
    killed, or came from elsewhere. Stages call it for their own run when they end; for one run
    it prints nothing, and does not look whether the run was deleted in MLflow.

    Example: asl-pipe sync
    """
    from pipeline.actions.sync import sync_journals, sync_run
    from pipeline.adapters.mlflow_store import MlflowStore
    from pipeline.project import find_project

    project = find_project(Path.cwd(), "demo")
    if fingerprint is not None:
        store = MlflowStore(project.root, trust_links=True)
        sync_run(project.root, fingerprint, store, outputs)
        return
    count = sync_journals(project.root, MlflowStore(project.root))
    typer.echo(f"{count} runs are in MLflow; asl-pipe ui shows them")
