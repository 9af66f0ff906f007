"""Address of the page on which MLflow shows a stage run."""

from pathlib import Path

from pipeline.tracking.mlflow.address import StoreAddress
from pipeline.tracking.mlflow.link import run_link

LOCAL_SERVER = "http://127.0.0.1:5000"  # where `asl-pipe ui` serves the project's own store


def run_page(root: Path, fingerprint: str) -> str | None:
    """Return the address of a run's page, None where it was never tracked here.

    Args:
        root: Folder that has `.dvc`.
        fingerprint: Of the stage run.
    """
    link = run_link(root, fingerprint)
    if link is None:
        return None
    store = StoreAddress.of(root)
    return (store.page if store.is_server else LOCAL_SERVER) + link.fragment
