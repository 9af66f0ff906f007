"""Runs that stand for experiments in MLflow: one for each encoder, above the runs of its stages.

The row of one never mixes results of two encoders, and MLflow, where params cannot be changed and
points cannot be deleted, has to do neither. Which of them is current follows dvc.lock.
"""

import getpass
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag

from asl_core.analysis import watched
from pipeline.jobs.journal import is_result
from pipeline.jobs.state import RunStatus
from pipeline.jobs.usage import COST
from pipeline.results.dvc_experiment import NAME
from pipeline.stages.table import PRETRAIN
from pipeline.tracking.mlflow.notes import parent_note
from pipeline.tracking.port import CurrentResult, SuiteResults
from pipeline.tracking.tracked import Point, TrackedRun

CURRENT = "asl.current"
"""Tag of an experiment's run, of a stage's and of a model's version: `true` where dvc.lock names
it, or will when it has ended; `false` where it does not, or no longer."""

BATCH = 1000  # MLflow's limit for metrics in one call

MLFLOWS_WORDS = {
    RunStatus.RUNNING: "RUNNING",
    RunStatus.SUCCEEDED: "FINISHED",
    RunStatus.FAILED: "FAILED",
    RunStatus.INTERRUPTED: "KILLED",
}
"""How MLflow calls what became of a run."""

Results = Mapping[str, CurrentResult]
"""What counts of an experiment, by stage."""


class ParentRuns:
    """The runs of one suite's experiments in one store; every call may be repeated.

    Args:
        client: Of the store.
        experiment_id: MLflow's experiment of the suite.
    """

    def __init__(self, client: MlflowClient, experiment_id: str) -> None:
        self._client, self._experiment_id = client, experiment_id

    def of(self, run: TrackedRun) -> str:
        """Find or create the run of the experiment, and of the encoder, that a stage run is about.

        A new one is current until dvc.lock says otherwise, unless DVC made it outside the
        workspace.
        """
        group = self._of_experiment(run.key)
        for parent in group:
            if run.encoder is not None and parent.data.tags.get("asl.encoder") == run.encoder:
                return parent.info.run_id
        for parent in group:
            if not _is_current(parent):
                continue
            if run.encoder is None:
                return parent.info.run_id
            if run.aside is None and "asl.encoder" not in parent.data.tags:
                self._tag(parent, "asl.encoder", run.encoder)
                return parent.info.run_id
        if run.aside is None:
            for parent in group:
                self._tag(parent, CURRENT, "false")
        return self._create(run)

    def fill(self, run: TrackedRun, run_id: str, parent_id: str) -> None:
        """Copy results to the experiment's run: one row, and one page of charts, has them all.

        Those of an experiment of DVC outside the workspace stay out of rows that are not its own.
        """
        parent = self._client.get_run(parent_id).data
        if run.aside is not None and run.aside != parent.tags.get(NAME):
            return
        points = {point for point in run.points() if is_result(point[0])}
        params: dict[str, str] = {}
        ends = run.stage == PRETRAIN.name and run.status is RunStatus.SUCCEEDED
        if run.stage == PRETRAIN.name:
            params = {k: v for k, v in run.params.items() if k not in parent.params}
        # Curves once they are final: what a resume voids could not be taken back.
        if ends and "asl.curves" not in parent.tags:
            points |= {p for p in run.points() if p[0].startswith(("pretrain/", watched.PREFIX))}
        log(self._client, parent_id, points, params, {})
        if ends and "asl.curves" not in parent.tags:  # after the points: a crash repeats them
            self._client.set_tag(parent_id, "asl.curves", run_id)
        self._sum_up(parent_id, self._children(parent_id))

    def follow(self, results: SuiteResults, is_ours: Callable[[str], bool]) -> None:
        """Make current what counts, and nothing else; put its rows right.

        Args:
            results: What counts.
            is_ours: Says whether a run that belongs to no experiment of the suite any more is this
                project's to withdraw; others may share the store.
        """
        runs = list(self._search(""))
        parents = [run for run in runs if run.data.tags.get("asl.stage") == "experiment"]
        for key in dict.fromkeys(run.data.tags.get("asl.experiment", "") for run in parents):
            group = [run for run in parents if run.data.tags.get("asl.experiment") == key]
            wanted = results.experiments.get(key)
            chosen = None if wanted is None else _choose(group, wanted.get(PRETRAIN.name))
            if chosen is not None and wanted is not None:
                self._tag(chosen, CURRENT, "true")
            for parent in group:
                children = [run for run in runs if _parent_of(run) == parent.info.run_id]
                known = wanted is not None or is_ours(parent.info.run_id)
                if known:
                    self._mark(children, results.named, wanted or {})
                if known and parent is not chosen:
                    self._tag(parent, CURRENT, "false")
                elif wanted is not None and parent is chosen:
                    self._put_right(parent, wanted)

    def _mark(self, children: Sequence[Run], named: frozenset[str], wanted: Results) -> None:
        """Say of each run of a stage whether its result counts; of those ahead nothing yet."""
        ahead = {result.fingerprint for result in wanted.values() if result.ahead}
        for child in children:
            fingerprint = child.data.tags.get("asl.fingerprint")
            if fingerprint not in ahead:
                self._tag(child, CURRENT, "true" if fingerprint in named else "false")

    def _put_right(self, parent: Run, wanted: Results) -> None:
        """Let a row have the numbers that count: MLflow shows the newest point of each.

        It deletes none, so that what no longer counts becomes no number.
        """
        children = self._children(parent.info.run_id)  # as they are marked now
        right = {
            name: value
            for result in wanted.values()
            for name, value in (result.metrics or {}).items()
            if is_result(name)
        }
        unknown = {stage for stage, result in wanted.items() if result.metrics is None}
        open_names = {
            name
            for child in children
            if child.data.tags.get("asl.stage") in unknown
            for name in child.data.metrics
        }
        stale = {name for name in parent.data.metrics if is_result(name)}
        right |= dict.fromkeys(stale - right.keys() - open_names, math.nan)
        now = int(time.time() * 1000)
        points = [
            Metric(name, value, now, 0)
            for name, value in sorted(right.items())
            if repr(parent.data.metrics.get(name)) != repr(float(value))
        ]
        if points:
            self._client.log_batch(parent.info.run_id, points)
        self._sum_up(parent.info.run_id, children)

    def _sum_up(self, parent_id: str, children: Sequence[Run]) -> None:
        """Give an experiment's run the state of the newest run of each of its stages."""
        counting = [run for run in children if run.data.tags.get(CURRENT) != "false"]
        by_age = sorted(counting or children, key=lambda run: run.info.start_time)
        newest = {run.data.tags["asl.stage"]: run.info for run in by_age}.values()
        words = {info.status for info in newest}
        worst = (RunStatus.RUNNING, RunStatus.FAILED, RunStatus.INTERRUPTED)
        status = next((s for s in worst if MLFLOWS_WORDS[s] in words), RunStatus.SUCCEEDED)
        end_ms = max((info.end_time or 0 for info in newest), default=0)
        set_status(self._client, parent_id, status, end_ms)
        self._add_up(parent_id, children)

    def _add_up(self, parent_id: str, children: Sequence[Run]) -> None:
        """Give an experiment's run what all of its stages took; the newest point is shown."""
        sums: dict[str, float] = {}
        for child in children:
            for name, value in child.data.metrics.items():
                if name.startswith(COST):
                    sums[name] = sums.get(name, 0.0) + value
        known = self._client.get_run(parent_id).data.metrics if sums else {}
        now = int(time.time() * 1000)
        points = [
            Metric(name, value, now, 0)
            for name, value in sorted(sums.items())
            if repr(known.get(name)) != repr(value)
        ]
        if points:
            self._client.log_batch(parent_id, points)

    def _create(self, run: TrackedRun) -> str:
        shared = {k: v for k, v in run.tags.items() if k in ("asl.suite", "asl.scale")}
        tags = {
            "asl.stage": "experiment", "asl.experiment": run.key,
            CURRENT: "true" if run.aside is None else "false", **shared,
            "mlflow.note.content": parent_note(run), "mlflow.user": user(),
        }  # fmt: skip
        if run.encoder is not None:
            tags["asl.encoder"] = run.encoder
        if run.aside is not None:
            tags[NAME] = run.aside
        created = self._client.create_run(
            self._experiment_id, start_time=run.start_ms, tags=tags, run_name=run.key
        )
        return created.info.run_id

    def _of_experiment(self, key: str) -> list[Run]:
        wanted = f"tags.`asl.stage` = 'experiment' and tags.`asl.experiment` = '{key}'"
        return list(self._search(wanted))

    def _children(self, parent_id: str) -> list[Run]:
        return list(self._search(f"tags.`mlflow.parentRunId` = '{parent_id}'"))

    def _search(self, wanted: str) -> Iterator[Run]:
        """Yield the runs that have these tags, newest first."""
        token: str | None = ""
        while token is not None:
            found = self._client.search_runs(
                [self._experiment_id], wanted, page_token=token or None
            )
            yield from found
            token = found.token or None

    def _tag(self, run: Run, name: str, value: str) -> None:
        if run.data.tags.get(name) != value:
            self._client.set_tag(run.info.run_id, name, value)


def _choose(group: Sequence[Run], pretrain: CurrentResult | None) -> Run | None:
    """Return the newest run of an experiment that is about an encoder, or about none yet."""
    if pretrain is None:
        return None
    encoders = {run.data.tags.get("asl.encoder"): run for run in reversed(group)}
    return encoders.get(pretrain.fingerprint) or encoders.get(None)


def _is_current(run: Run) -> bool:
    return run.data.tags.get(CURRENT) == "true"


def _parent_of(run: Run) -> str | None:
    return run.data.tags.get("mlflow.parentRunId")


def log(
    client: MlflowClient,
    run_id: str,
    points: Iterable[Point],
    params: Mapping[str, str],
    tags: Mapping[str, str],
) -> None:
    """Store points, params and tags of a run, as many at a time as MLflow takes."""
    metrics = [Metric(key, float(text), ms, step) for key, step, text, ms in sorted(points)]
    if not (metrics or params or tags):
        return
    client.log_batch(
        run_id,
        metrics[:BATCH],
        [Param(name, value) for name, value in params.items()],
        [RunTag(name, value) for name, value in tags.items()],
    )
    for start in range(BATCH, len(metrics), BATCH):
        client.log_batch(run_id, metrics[start : start + BATCH])


def set_status(client: MlflowClient, run_id: str, status: RunStatus, end_ms: int | None) -> None:
    """Say what became of a run."""
    word = MLFLOWS_WORDS[status]
    if status is RunStatus.RUNNING:
        client.update_run(run_id, status=word)
    else:
        client.set_terminated(run_id, status=word, end_time=end_ms)


def user() -> str:
    """Return who runs this program."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # in a container the number may have no name
        return str(os.getuid())
