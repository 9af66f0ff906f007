"""Writes one tracked run into MLflow, exactly once."""

import contextlib
import dataclasses
import json
import logging
import math
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import requests
from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    Run,
)
from mlflow.exceptions import MlflowException
from PIL import Image
from sqlalchemy.exc import SQLAlchemyError

from asl_core.engine.journal import redact
from pipeline.errors import TrackingError
from pipeline.jobs.state import RunStatus
from pipeline.stages.table import encoder_beside
from pipeline.tracking.mlflow.address import StoreAddress
from pipeline.tracking.mlflow.charts import VIEW_TAG, comparison_view
from pipeline.tracking.mlflow.link import RunLink, read_link, write_link
from pipeline.tracking.mlflow.loadable import ENCODER_FILES
from pipeline.tracking.mlflow.models import EncoderModels, LoadableEncoder
from pipeline.tracking.mlflow.moved import mend_locations
from pipeline.tracking.mlflow.notes import experiment_note, run_note
from pipeline.tracking.mlflow.parents import ParentRuns, log, set_status, user
from pipeline.tracking.mlflow.pictures import draw_curves
from pipeline.tracking.mlflow.tables import make_tables
from pipeline.tracking.normalisation import normalisation_of
from pipeline.tracking.port import StoreRefusedError, SuiteResults
from pipeline.tracking.small_files import WEIGHTS, WEIGHTS_TEXT, texts_beside
from pipeline.tracking.tracked import Point, TrackedRun

logger = logging.getLogger(__name__)

PART = 20_000  # points, some ten seconds of a server
CREDENTIALS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
LARGEST = 1.7976931348623157e308  # what MLflow's databases have for infinity
DIGEST_CHARACTERS = 36  # MLflow's limit for the digest of a dataset

SERIES = re.compile(r"pictures/(\w+)/step-(\d+)\.png")
"""Artifacts that show the same at several steps of training."""


@contextlib.contextmanager
def refusals(address: StoreAddress) -> Iterator[None]:
    """Turn what MLflow or the disk refuses into one line without passwords."""
    try:
        yield
    except (MlflowException, OSError, SQLAlchemyError, ImportError) as error:
        line = _first_line(error)
        if " failed with exception " in line:  # requests names hosts, objects and retries
            line = "the server does not answer"
        if refusal := _who_was_refused(error, address):
            line = refusal
        if isinstance(error, MlflowException) and error.error_code == "INVALID_PARAMETER_VALUE":
            raise TrackingError(f"{address.shown}: {line}") from error  # this run's fault
        if isinstance(error, requests.HTTPError) and _is_about_one_run(error.response):
            raise TrackingError(f"{address.shown}: {line}") from error
        raise StoreRefusedError(f"{address.shown}: {line}") from error


def _first_line(error: Exception) -> str:
    return next(iter(redact(str(error)).strip().splitlines()), type(error).__name__)


def _who_was_refused(error: Exception, address: StoreAddress) -> str | None:
    """Return what to set where a server wants to know who asks (401), or refuses him (403)."""
    if isinstance(error, requests.HTTPError):
        status = None if error.response is None else error.response.status_code
    elif isinstance(error, MlflowException):
        status = error.get_http_status_code()
        found = re.search(r"failed with error code (\d+)", str(error))
        status = int(found[1]) if found else status
    else:
        return None
    given = [name for name in CREDENTIALS if os.environ.get(name)]
    if address.uri != address.shown:
        given.append("user and password in MLFLOW_TRACKING_URI")
    if status == 401 and not given:
        return (
            "the server wants to know who asks (401): set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        )
    if status == 401:
        return f"the server does not accept {' and '.join(given)} (401): correct what they hold"
    if status == 403:
        return "the server refuses this user (403): ask whoever runs it for the right to write"
    return None


def _is_about_one_run(response: requests.Response | None) -> bool:
    """Say whether an answer refuses what was sent (a file too large), and not who sent it."""
    return response is not None and response.status_code in (400, 404, 411, 413, 414, 415, 422)


class RunUploader:
    """Brings runs into one store; the caller holds the project's tracking lock.

    Args:
        address: The store. Its tables are made here when there are none.
        root: Folder that has `.dvc`; paths are shown relative to it.
    """

    def __init__(self, address: StoreAddress, root: Path):
        self._address = address
        self._root = root
        make_tables(address.uri)
        mend_locations(address)
        self._client = MlflowClient(tracking_uri=address.uri)

    def ingest(self, run: TrackedRun, *, job: Path, out: Path) -> RunLink:
        """Bring a run up to its journal and return where it is.

        What was sent is noted before and after sending, so that a crash in between is made good:
        points keep their own times, and MLflow stores equal points once.
        """
        link = self._known(run, read_link(job))
        if link is not None and link.covers(run.lines):
            return _note(job, link)
        if link is not None and run.points(link.begun) - run.points():
            # A resume has voided points that are stored, and MLflow deletes no points.
            self._forget(run, link)
            link = None
        link = self._with_parent(run, link or self._create(run))
        # what was complete is so no more: it may fail from here on
        link = _note(job, link, begun=run.lines, complete=False, credited=False)
        link = self._fill(run, link, job)
        missing = self._store_artifacts(run, link.run_id, out)
        set_status(self._client, link.run_id, run.status, run.end_ms)
        if link.parent_run_id is not None:
            ParentRuns(self._client, link.experiment_id).fill(run, link.run_id, link.parent_run_id)
        lacks_files = bool(missing) and run.status is RunStatus.SUCCEEDED
        complete = run.status is not RunStatus.RUNNING and not lacks_files
        credited = self._credit_encoder(run, link, out, missing)
        return _note(
            job, link, done=run.lines, status=run.status, complete=complete, credited=credited,
            loadable=credited,
        )  # fmt: skip

    def follow(self, results: SuiteResults, is_ours: Callable[[str], bool]) -> bool:
        """Make current what counts of a suite that has runs here, see `ParentRuns.follow`.

        Returns:
            Whether that was all: not of a store without models, or without a registry.
        """
        experiment = self._client.get_experiment_by_name(experiment_name(results.suite))
        if experiment is None or experiment.lifecycle_stage != "active":
            return True
        ParentRuns(self._client, experiment.experiment_id).follow(results, is_ours)
        models = EncoderModels(self._client, experiment.experiment_id, results.suite)
        try:
            models.follow(results, is_ours)
        except MlflowException as error:
            logger.warning("%s: MLflow's models: %s", results.suite, _first_line(error))
            return False
        return True

    # -- which run ------------------------------------------------------------------------------

    def _known(self, run: TrackedRun, link: RunLink | None) -> RunLink | None:
        """Return the run's link if the store still has the run; a lost link is found again."""
        if link is not None and link.store == self._address.digest and self._has(link.run_id):
            if link.parent_run_id is None or self._has(link.parent_run_id):
                return link
            return dataclasses.replace(link, parent_run_id=None, complete=False)
        experiment = self._client.get_experiment_by_name(experiment_name(run.suite))
        if experiment is None:
            return None
        found = self._search(experiment.experiment_id, {"asl.fingerprint": run.fingerprint})
        if not found:
            return None
        link = self._link(run, found[0])
        # what the store has beyond this journal may be of a copy that has gone further
        voided = {_as_stored(point) for point in run.voided()}
        if voided and self._stored(found[0]) & voided:
            self._forget(run, link)
            return None
        return link

    def _stored(self, stored: Run) -> set[Point]:
        """Return all points of a run in the store."""
        return {
            _as_stored((key, point.step, repr(point.value), point.timestamp))
            for key in stored.data.metrics
            for point in self._client.get_metric_history(stored.info.run_id, key)
        }

    def _forget(self, run: TrackedRun, link: RunLink) -> None:
        """Delete a run whose points no longer hold; with an encoder's, what was made of it."""
        self._client.delete_run(link.run_id)
        if run.stage == "pretrain":
            EncoderModels(self._client, link.experiment_id, run.suite).remove(run.fingerprint)
            if link.parent_run_id is not None and self._has(link.parent_run_id):
                parent = self._client.get_run(link.parent_run_id)
                if "asl.curves" in parent.data.tags:  # a finished run's, which it cannot take back
                    self._client.delete_run(link.parent_run_id)

    def _create(self, run: TrackedRun) -> RunLink:
        tags = {
            **run.tags,
            "mlflow.source.name": f"asl-pipe run {run.stage} {run.key}",
            "mlflow.source.type": "LOCAL",
            "mlflow.source.git.commit": run.tags.get("git.commit", ""),
            "mlflow.user": user(),
        }
        name = f"{run.stage}/{run.key}"
        experiment_id = self._experiment_id(run.suite)
        self._client.create_run(experiment_id, start_time=run.start_ms, tags=tags, run_name=name)
        # a slow server may have been asked twice by MLflow itself: one of both stays
        same = self._search(experiment_id, {"asl.fingerprint": run.fingerprint})
        kept, *others = sorted(same, key=lambda found: found.info.run_id)
        for other in others:
            self._client.delete_run(other.info.run_id)
        return self._link(run, kept)

    def _link(self, run: TrackedRun, stored: Run) -> RunLink:
        return RunLink(
            store=self._address.digest,
            experiment_id=stored.info.experiment_id,
            parent_run_id=stored.data.tags.get("mlflow.parentRunId"),
            run_id=stored.info.run_id,
            suite=run.suite,
            stage=run.stage,
            key=run.key,
        )

    def _with_parent(self, run: TrackedRun, link: RunLink) -> RunLink:
        """Put the run below the run of its experiment, if it has none."""
        if run.experiment is None or link.parent_run_id is not None:
            return link
        parent_id = ParentRuns(self._client, link.experiment_id).of(run)
        self._client.set_tag(link.run_id, "mlflow.parentRunId", parent_id)
        self._client.set_tag(link.run_id, "asl.experiment", run.experiment)
        return dataclasses.replace(link, parent_run_id=parent_id)

    def _experiment_id(self, suite: str) -> str:
        name = experiment_name(suite)
        experiment = self._client.get_experiment_by_name(name)
        if experiment is not None and experiment.lifecycle_stage == "active":
            if VIEW_TAG not in experiment.tags:  # one that people have changed stays
                self._add_view(experiment.experiment_id, suite)
            return experiment.experiment_id
        if experiment is not None:
            raise TrackingError(
                f"MLflow's experiment {name} was deleted; restore it: "
                f"mlflow experiments restore --experiment-id {experiment.experiment_id}"
            )
        folder = self._address.artifacts
        location = None if folder is None else (folder / suite).as_uri()
        try:
            experiment_id = self._client.create_experiment(name, artifact_location=location)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return self._experiment_id(suite)  # another project's process was faster
        # Without its kind MLflow opens an experiment as one on language models.
        self._client.set_experiment_tag(
            experiment_id, "mlflow.experimentKind", "custom_model_development"
        )
        note = experiment_note(suite, experiment_id)
        self._client.set_experiment_tag(experiment_id, "mlflow.note.content", note)
        self._add_view(experiment_id, suite)
        return experiment_id

    def _add_view(self, experiment_id: str, suite: str) -> None:
        view = comparison_view(suite, int(time.time() * 1000))
        self._client.set_experiment_tag(experiment_id, VIEW_TAG, view)

    def _has(self, run_id: str) -> bool:
        try:
            return self._client.get_run(run_id).info.lifecycle_stage == "active"
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise

    def _search(self, experiment_id: str, tags: dict[str, str]) -> list[Run]:
        """Return the runs with all these tags, newest first."""
        wanted = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
        return list(self._client.search_runs([experiment_id], wanted))

    # -- what is in it --------------------------------------------------------------------------

    def _fill(self, run: TrackedRun, link: RunLink, job: Path) -> RunLink:
        """Store what a run's journal says and the store does not have yet.

        Of what has waited for days each part that has arrived is noted: a server that fails in
        between is not sent the whole again.
        """
        present = self._client.get_run(link.run_id).data.params
        params = {name: value for name, value in run.params.items() if name not in present}
        tags = {**run.tags, "mlflow.note.content": run_note(run)}
        log(self._client, link.run_id, set(), params, tags)
        counting, sent = run.points(), run.points(link.done)
        parts = max(1, math.ceil(len(counting - sent) / PART))
        for lines in run.milestones(link.done, parts):
            reached = counting if lines == run.lines else counting & run.points(lines)
            log(self._client, link.run_id, reached - sent, {}, {})
            sent |= reached
            link = _note(job, link, done=lines)
        if run.datasets:
            self._client.log_inputs(link.run_id, datasets=[_dataset(d) for d in run.datasets])
        return link

    def _credit_encoder(
        self, run: TrackedRun, link: RunLink, out: Path, missing: list[str]
    ) -> bool:
        """Show a new encoder among the models, or what a stage has found out about one.

        Returns:
            Whether nothing is left to do. A store without models or a registry shows runs alone.
        """
        if run.status is not RunStatus.SUCCEEDED or run.experiment is None:
            return run.status is not RunStatus.RUNNING
        models = EncoderModels(self._client, link.experiment_id, run.suite)
        try:
            if run.stage == "pretrain":
                texts = {} if missing else texts_beside(out, self._root)
                encoder = None if missing else self._loadable(run, out)
                models.add(run, link.run_id, texts.get(WEIGHTS_TEXT), encoder)
                return True
            made_here = (
                self._root / ".asl/jobs" / run.tags.get("asl.encoder_fingerprint", "-") / "journal"
            )
            return models.credit(run, link.run_id) or not made_here.is_dir()
        except (MlflowException, OSError) as error:  # what a server says of a large file, too
            reason = _first_line(error)
            logger.warning("%s@%s: not among MLflow's models: %s", run.stage, run.key, reason)
            return False

    def _loadable(self, run: TrackedRun, out: Path) -> LoadableEncoder | None:
        """Return what makes an encoder a model that MLflow loads, where all of it is at hand."""
        folder = encoder_beside(out)
        if folder is None or not all((folder / name).is_file() for name in ENCODER_FILES):
            return None
        constants = normalisation_of(run, self._root)
        return None if constants is None else LoadableEncoder(folder, constants)

    def _store_artifacts(self, run: TrackedRun, run_id: str, out: Path) -> list[str]:
        missing = []
        texts = texts_beside(out, self._root)
        for name in run.artifacts:
            path = out / name
            if of_series := SERIES.fullmatch(name):
                if not self._add_to_series(run, run_id, path, *of_series.groups()):
                    missing.append(name)
                continue
            if path.suffix in WEIGHTS:
                stored = name in texts.get(WEIGHTS_TEXT, "")
            else:
                stored = path.resolve().is_relative_to(out.resolve()) and self._copy(
                    run_id, path, Path(name).parent
                )
            if not stored:
                missing.append(name)
        for name, text in texts.items():
            self._client.log_text(run_id, text, name)
        if curves := run.curves():
            with tempfile.TemporaryDirectory() as folder:
                picture = Path(folder) / "curves.png"
                draw_curves(curves, f"{run.stage}/{run.key}", picture)
                self._client.log_artifact(run_id, str(picture), "pictures")
        return missing

    def _add_to_series(self, run: TrackedRun, run_id: str, path: Path, key: str, step: str) -> bool:
        """Store a picture so that MLflow shows it with a slider over the steps."""
        stored = [file.path for file in self._client.list_artifacts(run_id, "images")]
        ours = [name for name in stored if name.startswith(f"images/{key}+step+{int(step)}+")]
        # MLflow writes the picture, a small one, and a tag; the small one may be lacking
        if any("+compressed" in name for name in ours):
            self._client.set_tag(run_id, "mlflow.loggedImages", "true")
            return True
        try:
            with Image.open(path) as opened:
                picture = opened.convert("RGB")
        except OSError:  # absent, or damaged
            return False
        self._client.log_image(
            run_id, picture, key=key, step=int(step), timestamp=run.end_ms or run.start_ms,
            synchronous=True,
        )  # fmt: skip
        return True

    def _copy(self, run_id: str, path: Path, folder: Path) -> bool:
        """Store a file; False where there is none, or none any more: DVC may be linking it anew."""
        if not path.is_file() or not os.access(path, os.R_OK):
            return False
        try:
            self._client.log_artifact(run_id, str(path), None if folder == Path() else str(folder))
        except FileNotFoundError:
            return False
        return True


def _as_stored(point: Point) -> Point:
    """Return a point as a database gives it back, in which there is no infinity."""
    key, step, text, time_ms = point
    value = float(text)
    if math.isinf(value):
        value = math.copysign(LARGEST, value)
    return key, step, repr(value), time_ms


def experiment_name(suite: str) -> str:
    """Return the name of a suite's experiment in MLflow."""
    return f"asl/{suite}"


def _dataset(body: Mapping[str, str]) -> DatasetInput:
    dataset = Dataset(
        name=body["name"],
        digest=body["digest"][:DIGEST_CHARACTERS],
        source_type="local",
        source=json.dumps({"uri": body["source"]}),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", body["context"])])


def _note(job: Path, link: RunLink, **changes: Any) -> RunLink:
    """Keep what is known of the run beside its journal."""
    link = dataclasses.replace(link, **changes)
    write_link(job, link)
    return link
