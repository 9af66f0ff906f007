"""Encoders as MLflow's models: what each scored in which stage, where its weights are, the best.

A pre-training run leaves one model, in the experiment and as a version of the suite's registered
model. It holds a copy of the encoder, with what `mlflow.pyfunc` needs to load it, and the text that
says where DVC keeps the weights.
"""

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelInput, LoggedModelOutput, Metric, Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from asl_core.recipes.normalisation import Rgb
from pipeline.results.dvc_experiment import NAME
from pipeline.stages.table import PRETRAIN
from pipeline.tracking.mlflow.loadable import MLMODEL, write_loadable
from pipeline.tracking.mlflow.parents import CURRENT
from pipeline.tracking.port import CurrentResult, SuiteResults
from pipeline.tracking.small_files import WEIGHTS_TEXT
from pipeline.tracking.tracked import TrackedRun

ENCODER = "encoder"
BEST = "best"
TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
"""MLflow's setting of how long a server may be silent, in seconds; read at each call."""
SLOWEST = 4_000_000
"""Bytes a second that a server is expected to keep, at least."""
RANKING = ("lp_acc1", "ft_acc1", "ap_box", "miou")
"""The best of a suite has most of the first of these that one of its encoders has."""


@dataclass(frozen=True)
class LoadableEncoder:
    """An encoder that is at hand, and the normalisation of its images: mean and deviation."""

    folder: Path
    normalisation: tuple[Rgb, Rgb]


class EncoderModels:
    """The encoders of one suite in one store; every call may be repeated.

    Args:
        client: Of the store.
        experiment_id: MLflow's experiment of the suite.
        suite: Its name.
    """

    def __init__(self, client: MlflowClient, experiment_id: str, suite: str) -> None:
        self._client, self._experiment_id, self._suite = client, experiment_id, suite
        self._name = f"asl-{suite}".replace("/", "-").replace(":", "-")  # what MLflow refuses

    def add(
        self, run: TrackedRun, run_id: str, weights: str | None, encoder: LoadableEncoder | None
    ) -> None:
        """Make the model of a finished pre-training run.

        Args:
            run: The run.
            run_id: It, in the store.
            weights: Text that says where the weights are; None where they are not at hand.
            encoder: What makes it loadable; None where that is not at hand, or not known. A model
                that has it keeps it.
        """
        model = self._find(run.fingerprint)
        if model is None:
            tags = {"asl.fingerprint": run.fingerprint, "asl.experiment": run.key}
            model = self._client.create_logged_model(
                self._experiment_id, name=run.key, source_run_id=run_id, tags=tags,
                params=dict(run.params), model_type=ENCODER,
            )  # fmt: skip
        if encoder is not None and not self._is_loadable(model):
            self._make_loadable(model, run, run_id, encoder)
        if model.status != "READY" and weights is not None:
            with tempfile.TemporaryDirectory() as folder:
                text = Path(folder) / WEIGHTS_TEXT
                text.write_text(weights, encoding="utf-8")
                self._client.log_model_artifact(model.model_id, str(text))
            model = self._client.finalize_logged_model(model.model_id, "READY")
        stored = self._client.get_run(run_id)
        outputs = [] if stored.outputs is None else stored.outputs.model_outputs
        if model.model_id not in {output.model_id for output in outputs}:
            self._client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
        self._register(model, run)
        self._score(model, run, run_id)

    def _is_loadable(self, model: LoggedModel) -> bool:
        files = self._client.list_logged_model_artifacts(model.model_id)
        return MLMODEL in {file.path for file in files}

    def _make_loadable(
        self, model: LoggedModel, run: TrackedRun, run_id: str, encoder: LoadableEncoder
    ) -> None:
        """Store the encoder in a model, the description that makes it one last."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "model"
            folder.mkdir()
            write_loadable(
                folder, encoder.folder, encoder.normalisation, run,
                model_id=model.model_id, run_id=run_id,
            )  # fmt: skip
            description = (folder / MLMODEL).rename(Path(name) / MLMODEL)
            with _patient(encoder.folder):
                self._client.log_model_artifacts(model.model_id, str(folder))
                self._client.log_model_artifact(model.model_id, str(description))

    def remove(self, fingerprint: str) -> None:
        """Delete the model of an encoder, and its version, should there be one."""
        for version in self._versions():
            if version.tags.get("asl.fingerprint") == fingerprint:
                self._client.delete_model_version(self._name, version.version)
        model = self._find(fingerprint)
        if model is not None:
            self._client.delete_logged_model(model.model_id)

    def credit(self, run: TrackedRun, run_id: str) -> bool:
        """Give an encoder the results of a stage; False where it is not among the models."""
        model = self._find(run.tags.get("asl.encoder_fingerprint", ""))
        if model is None:
            return False
        if model.model_id not in _inputs(self._client.get_run(run_id)):
            self._client.log_inputs(run_id, models=[LoggedModelInput(model.model_id)])
        self._score(model, run, run_id)
        return True

    def follow(self, results: SuiteResults, is_ours: Callable[[str], bool]) -> None:
        """Rank the encoders that count by the numbers that count, and no others.

        Args:
            results: What counts.
            is_ours: See `ParentRuns.follow`.
        """
        current = {
            stages[PRETRAIN.name].fingerprint: stages
            for stages in results.experiments.values()
            if PRETRAIN.name in stages
        }
        for version in self._versions():
            stages = current.get(version.tags.get("asl.fingerprint", ""))
            known = version.tags.get("asl.experiment") in results.experiments
            if not known and not is_ours(version.run_id or ""):
                continue
            self._tag(version, CURRENT, "false" if stages is None else "true")
            if stages is not None:
                self._rate_anew(version, stages.values())
        self._choose_best()

    def _rate_anew(self, version: ModelVersion, results: Collection[CurrentResult]) -> None:
        """Let a version have the results that count; what it has stays where some are unknown."""
        known = {n: v for each in results for n, v in (each.metrics or {}).items() if n in RANKING}
        ranked = known if any(each.metrics is None for each in results) else RANKING
        now = str(int(time.time() * 1000))
        for name in ranked:
            if name not in known and name in version.tags:
                self._client.delete_model_version_tag(self._name, version.version, name)
            elif name in known and version.tags.get(name) != repr(known[name]):
                self._tag(version, name, repr(known[name]))
                self._tag(version, f"{name}.time_ms", now)

    def _tag(self, version: ModelVersion, name: str, value: str) -> None:
        if version.tags.get(name) != value:
            self._client.set_model_version_tag(self._name, version.version, name, value)

    def _score(self, model: LoggedModel, run: TrackedRun, run_id: str) -> None:
        """Add results that the model lacks, even those of a run that was deleted."""
        data = run.datasets[-1] if run.datasets else {}
        known = {(m.key, m.value, m.timestamp, m.step) for m in model.metrics or ()}
        found = [
            Metric(
                key, float(text), time_ms, step, model_id=model.model_id, run_id=run_id,
                dataset_name=data.get("name"), dataset_digest=data.get("digest"),
            )
            for key, step, text, time_ms in sorted(run.results())
        ]  # fmt: skip
        new = [m for m in found if (m.key, m.value, m.timestamp, m.step) not in known]
        if new:
            self._client.log_batch(run_id, new)
        version = self._version(model)
        rates = version is not None and run.aside in (None, version.tags.get(NAME))
        for metric in found:  # known ones too: whoever added them may have got no further
            if version is not None and rates and metric.key in RANKING:
                self._rate(version, metric.key, metric)
        self._choose_best()

    def _rate(self, version: ModelVersion, name: str, metric: Metric) -> None:
        """Note a result by which versions are ranked; of two runs of a stage the newer counts."""
        when = f"{name}.time_ms"
        if int(version.tags.get(when, 0)) <= metric.timestamp:
            for tag, value in ((name, repr(metric.value)), (when, str(metric.timestamp))):
                self._client.set_model_version_tag(self._name, version.version, tag, value)

    def _find(self, fingerprint: str) -> LoggedModel | None:
        found = self._client.search_logged_models(
            [self._experiment_id], f"tags.`asl.fingerprint` = '{fingerprint}'", max_results=1
        )
        return found[0] if found else None

    def _register(self, model: LoggedModel, run: TrackedRun) -> None:
        note = (
            f"Encoders of suite {self._suite}. Alias `{BEST}`: of those in dvc.lock the one "
            f"with most of the first of {', '.join(RANKING)} that was measured. "
            "`mlflow.pyfunc` loads them: `predict` takes images and gives a vector for each."
        )
        try:
            self._client.create_registered_model(self._name, description=note)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        aside = {} if run.aside is None else {NAME: run.aside, CURRENT: "false"}
        if self._version(model) is None:
            self._client.create_model_version(
                self._name, model.artifact_location, run_id=model.source_run_id,
                model_id=model.model_id, await_creation_for=0,
                tags={"asl.fingerprint": run.fingerprint, "asl.experiment": run.key, **aside},
            )  # fmt: skip

    def _versions(self) -> list[ModelVersion]:
        return list(self._client.search_model_versions(f"name = '{self._name}'"))

    def _version(self, model: LoggedModel) -> ModelVersion | None:
        fingerprint = model.tags.get("asl.fingerprint")
        return next(
            (v for v in self._versions() if v.tags.get("asl.fingerprint") == fingerprint), None
        )

    def _choose_best(self) -> None:
        versions = [v for v in self._versions() if v.tags.get(CURRENT) != "false"]
        for name in RANKING:
            ranked = [version for version in versions if name in version.tags]
            if ranked:
                best = max(ranked, key=lambda version: float(version.tags[name]))
                if self._best() != str(best.version):
                    self._client.set_registered_model_alias(self._name, BEST, best.version)
                return
        if self._best() is not None:
            self._client.delete_registered_model_alias(self._name, BEST)

    def _best(self) -> str | None:
        """Return the version that is the best so far; a search for versions says no aliases."""
        try:
            aliases = self._client.get_registered_model(self._name).aliases
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return None if BEST not in aliases else str(aliases[BEST])


@contextlib.contextmanager
def _patient(folder: Path) -> Iterator[None]:
    """Give a server the time to keep files: it may answer only when it has handed them on."""
    size = sum(path.stat().st_size for path in folder.glob("*"))
    before = os.environ.get(TIMEOUT)
    os.environ[TIMEOUT] = str(max(int(before or 0), 30 + size // SLOWEST))
    try:
        yield
    finally:
        if before is None:
            del os.environ[TIMEOUT]
        else:
            os.environ[TIMEOUT] = before


def _inputs(run: Run) -> set[str]:
    return set() if run.inputs is None else {each.model_id for each in run.inputs.model_inputs}
