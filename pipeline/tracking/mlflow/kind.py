"""MLflow as a tracker that cluster.yaml can name. Loads no MLflow by itself."""

from pathlib import Path

from pipeline.tracking.mlflow.store import TITLE, MlflowStore, follow
from pipeline.tracking.mlflow.ui import serve
from pipeline.tracking.port import TrackerKind


def mlflow() -> TrackerKind:
    """Return what `mlflow` in cluster.yaml stands for."""
    return TrackerKind(TITLE, _connect, serve, follow)


def _connect(root: Path, trusting: bool) -> MlflowStore:
    return MlflowStore(root, trust_links=trusting)
