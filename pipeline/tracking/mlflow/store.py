"""Shows stage runs in MLflow. Loads MLflow on first use only, for that takes two seconds."""

import functools
import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from asl_core.errors import InputError
from pipeline.errors import TrackingError
from pipeline.tracking.mlflow.address import StoreAddress, ignored_settings
from pipeline.tracking.mlflow.link import RunLink, all_links, is_shown, read_link, write_link
from pipeline.tracking.mlflow.lock import tracking_lock
from pipeline.tracking.mlflow.run_page import run_page
from pipeline.tracking.port import SuiteResults
from pipeline.tracking.tracked import read_tracked_run
from pipeline.writing import write_bytes

if TYPE_CHECKING:
    from pipeline.tracking.mlflow.client import RunUploader

logger = logging.getLogger(__name__)

TITLE = "MLflow"

FOLLOWED = "mlflow-current.txt"
"""In `.asl`: digest of what the store's current runs follow."""

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
            _prepare_mlflow()
            from pipeline.tracking.mlflow.client import RunUploader, refusals

            with refusals(address):
                if self._uploader is None:
                    self._uploader = RunUploader(address, self._root)
                return self._uploader.ingest(run, job=journal.parent, out=out)


def follow(root: Path, suites: Sequence[SuiteResults], trusting: bool) -> None:
    """Let what is current in the store be what counts, see `TrackerKind`.

    What it has been made from is noted, so that a store which is up to date costs nothing. A store
    that does not exist yet stays so.

    Raises:
        TrackingError: The store cannot be reached or refuses.
    """
    address, note = StoreAddress.of(root), root / ".asl" / FOLLOWED
    if not suites or (address.database is not None and not address.database.exists()):
        return
    with tracking_lock(root):
        links = all_links(root)
        digest = _digest(address, root, suites, links)
        if trusting and note.is_file() and note.read_text("utf-8") == digest:
            return
        _prepare_mlflow()
        from pipeline.tracking.mlflow.client import RunUploader, refusals

        ours = {run_id for link in links for run_id in (link.run_id, link.parent_run_id)}

        def is_ours(run_id: str) -> bool:
            return address.place is not None or run_id in ours

        with refusals(address):
            uploader = RunUploader(address, root)
            whole = [uploader.follow(suite, is_ours) for suite in suites]
            write_bytes(note, digest.encode() if all(whole) else b"")


def _digest(
    address: StoreAddress, root: Path, suites: Sequence[SuiteResults], links: Sequence[RunLink]
) -> str:
    """Tell one state of dvc.lock, and of the runs that the store has, from others."""
    runs = sorted((link.run_id, link.parent_run_id or "", link.status) for link in links)
    counting = [
        (s.suite, sorted(s.named), sorted(map(repr, s.experiments.items()))) for s in suites
    ]
    return hashlib.sha256(repr((str(root), address.digest, runs, counting)).encode()).hexdigest()


@functools.cache  # once in a process
def _prepare_mlflow() -> None:
    """Bound its waiting and keep its messages off the terminal: errors come as exceptions.

    What the user has set and what does nothing here is said.
    """
    for line in ignored_settings():
        logger.warning("%s", line)
    for name, value in BOUNDED.items():
        os.environ.setdefault(name, value)
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    logging.getLogger("alembic").setLevel(logging.WARNING)
