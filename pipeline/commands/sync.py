"""asl-pipe sync."""

from pathlib import Path

import typer


def sync() -> None:
    """Bring all journals into MLflow.

    A second time adds nothing. For runs that ended while MLflow could not be reached, were
    killed, or came from elsewhere.

    Example: asl-pipe sync
    """
    from pipeline.actions.sync import sync_journals
    from pipeline.adapters.mlflow_store import MlflowStore
    from pipeline.project import find_project

    project = find_project(Path.cwd(), "demo")
    count = sync_journals(project.root, MlflowStore(project.root))
    typer.echo(f"{count} runs are in MLflow; asl-pipe ui shows them")
