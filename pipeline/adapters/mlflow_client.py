"""Writes one tracked run into MLflow, exactly once: the only module that imports mlflow."""

import contextlib
import dataclasses
import getpass
import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    Experiment,
    InputTag,
    Metric,
    Param,
    Run,
    RunTag,
    ViewType,
)
from mlflow.exceptions import MlflowException

from pipeline.adapters.mlflow_pictures import draw_curves
from pipeline.errors import TrackingError
from pipeline.jobs.mlflow_link import RunLink, read_link, write_link
from pipeline.jobs.notes import experiment_note, parent_note, run_note
from pipeline.jobs.store import StoreAddress
from pipeline.jobs.tracked import FINAL_PREFIX, Point, TrackedRun

BATCH = 1000  # MLflow's limit for metrics in one call
DIGEST_CHARACTERS = 36  # MLflow's limit for the digest of a dataset
WEIGHTS = (".safetensors", ".pt", ".pth")


class RunUploader:
    """Brings runs into one store; the caller holds the project's tracking lock.

    Args:
        address: The store. Its tables are made here when there are none.
        root: Folder that has `.dvc`; paths are shown relative to it.
    """

    def __init__(self, address: StoreAddress, root: Path):
        self._address = address
        self._root = root
        self._client = MlflowClient(tracking_uri=address.uri)

    def ingest(self, run: TrackedRun, *, job: Path, out: Path) -> RunLink:
        """Bring a run up to its journal and return where it is.

        What was sent is noted before and after sending, so that a crash in between is made good:
        the points keep their own times, and MLflow stores equal points once.
        """
        link = self._known(run, read_link(job))
        if link is not None and link.complete and link.done == run.lines:
            return link
        if link is None or run.points(link.begun) - run.points():
            # New; or a resume has voided points that are stored, and MLflow deletes no points.
            link = self._begin(run, link)
        link = self._note(job, link, begun=run.lines)
        missing = self._fill(run, link, out)
        self._fill_parent(run, link)
        complete = run.status != "RUNNING" and not (missing and run.status == "FINISHED")
        return self._note(job, link, done=run.lines, status=run.status, complete=complete)

    # -- which run ------------------------------------------------------------------------------

    def _known(self, run: TrackedRun, link: RunLink | None) -> RunLink | None:
        """Return the run's link where the store still has it; found by its fingerprint if lost."""
        if link is not None and link.store == self._address.digest and self._has(link.run_id):
            return link if self._has(link.parent_run_id) else None
        experiment = self._client.get_experiment_by_name(experiment_name(run.suite))
        if experiment is None:
            return None
        found = self._search(experiment.experiment_id, {"asl.fingerprint": run.fingerprint})
        if not found:
            return None
        # What of it is stored is not known: as much as the journal holds, perhaps.
        return self._link(run, found[0], begun={**run.lines, "unknown": 0})

    def _begin(self, run: TrackedRun, old: RunLink | None) -> RunLink:
        """Create the run, in place of an old one if there is one."""
        experiment_id = self._experiment_id(run.suite)
        parent_id = self._parent_id(experiment_id, run) if run.experiment else None
        if old is not None:
            self._client.delete_run(old.run_id)
        tags = {
            "mlflow.source.name": f"asl-pipe run {run.stage} {run.key}",
            "mlflow.source.type": "LOCAL",
            "mlflow.user": getpass.getuser(),
        }
        if "git.commit" in run.tags:
            tags["mlflow.source.git.commit"] = run.tags["git.commit"]
        if parent_id is not None:
            tags |= {"mlflow.parentRunId": parent_id, "asl.experiment": run.experiment or ""}
        created = self._client.create_run(
            experiment_id,
            start_time=run.start_ms,
            tags={**run.tags, **tags},
            run_name=f"{run.stage}/{run.key}",
        )
        return self._link(run, created)
