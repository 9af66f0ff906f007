"""Shows stage runs in MLflow. Loads MLflow on first use only, for that takes two seconds."""

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from asl_core.errors import InputError
from pipeline.errors import TrackingError
from pipeline.tracking.mlflow.address import StoreAddress
from pipeline.tracking.mlflow.link import RunLink, is_shown, read_link, write_link
from pipeline.tracking.mlflow.lock import tracking_lock
from pipeline.tracking.mlflow.run_page import run_page
from pipeline.tracking.tracked import read_tracked_run

if TYPE_CHECKING:
    from pipeline.tracking.mlflow.client import RunUploader

TITLE = "MLflow"

BOUNDED = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # default 7: a refused server costs 247 s a call
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",  # seconds; default 120
    "PGCONNECT_TIMEOUT": "5",  # seconds; by default PostgreSQL's clients wait for ever
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""Settings of MLflow and of what it uses that hold unless the user has set them."""


class MlflowStore:
    """The tracking store of a project.

    Args:
        root: Folder that has `.dvc`.
        trust_links: Take a link's word that a whole run is in the store, without loading MLflow.
            Otherwise the store is asked, and what was deleted there is made again.
    """

    def __init__(self, root: Path, *, trust_links: bool = False):
        self._root = root
        self._trust_links = trust_links
        self._uploader: RunUploader | None = None

    @property
    def title(self) -> str:
        return TITLE

    def is_shown(self, job_folder: Path) -> bool:
        return is_shown(job_folder)

    def page_of(self, fingerprint: str) -> str | None:
        return run_page(self._root, fingerprint)

    def ingest(self, journal: Path, out: Path) -> RunLink:
        """Bring a run up to what its journal says; a second call adds nothing.

        Args:
            journal: The run's journal, `.asl/jobs/<fingerprint>/journal`; its link to the MLflow
                run, mlflow.json, is kept beside it.
            out: Folder with the artifacts that the journal names.

        Raises:
            TrackingError: The store cannot be reached or refuses, or the journal is not readable.
        """
        for name, value in BOUNDED.items():
            os.environ.setdefault(name, value)
        address = StoreAddress.of(self._root)
        # Within the lock: who had it before may have brought this run, or a newer attempt of it.
        with tracking_lock(self._root):
            try:
                run = read_tracked_run(journal)
            except InputError as error:
                raise TrackingError(str(error)) from error
            link = read_link(journal.parent) if self._trust_links else None
            if link is not None and link.store == address.digest and link.covers(run.lines):
                if not is_shown(journal.parent):  # a journal that was copied looks like a new one
                    write_link(journal.parent, link)
                return link
            from pipeline.tracking.mlflow.client import RunUploader, refusals

            _quieten()
            with refusals(address):
                if self._uploader is None:
                    self._uploader = RunUploader(address, self._root)
                return self._uploader.ingest(run, job=journal.parent, out=out)


def _quieten() -> None:
    """Keep MLflow's messages off the terminal: what goes wrong comes as an exception."""
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    logging.getLogger("alembic").setLevel(logging.WARNING)
