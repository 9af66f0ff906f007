"""A suite's results: from params.yaml what belongs to it, from runs/*.json and dvc.lock what is.

Never from a glob: an experiment that was removed leaves its files behind. Reads only.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from asl_core.data.manifest import FILE_NAME, Manifest, read_manifest
from asl_core.recipes.imported import ImportedRecipe
from pipeline.config.params import Params
from pipeline.errors import UserError
from pipeline.project import find_project
from pipeline.stages.table import MEASURED, STAGES
from pipeline.tables.lock import State, read_lock


@dataclass(frozen=True)
class Experiment:
    """One experiment of a suite; `row` names the table row where params.yaml does."""

    key: str
    recipe: Any
    row: str | None


@dataclass(frozen=True)
class StageResult:
    """What one stage run left behind; `state` is missing where it left nothing."""

    stage: str
    key: str
    recipe: Any
    """The stage's resolved settings for this experiment."""
    state: State | Literal["missing"]
    metrics: Mapping[str, float]
    scale: str
    fingerprint: str | None
    outputs: Mapping[str, str | None]
    """Path -> md5 of each output, as recorded in dvc.lock."""
    inputs: Mapping[str, str]
    """Path -> md5 of the data and runs it was made from, as recorded in dvc.lock."""
    command: str
    """Makes this result, from the project's root."""
    undefined: frozenset[str] = frozenset()
    """Metrics that the run looked for and that its data do not give: null in its file."""
    vouched: bool = False
    """Made with other code than it stands for: somebody has shown that this makes the same."""

    @property
    def short_fingerprint(self) -> str:
        """First eight characters, enough to find the run."""
        return (self.fingerprint or "")[:8]

    @property
    def md5(self) -> str | None:
        """What dvc.lock has for the first output: of a pre-training, the encoder's."""
        return next(iter(self.outputs.values()), None)


@dataclass(frozen=True)
class Suite:
    """A suite as params.yaml declares it, with the results that exist."""

    folder: Path
    root: Path
    name: str
    title: str
    scale: str
    tables: tuple[str, ...]
    experiments: tuple[Experiment, ...]
    results: Mapping[tuple[str, str], StageResult]
    """(stage, key) -> result, for every stage run that params.yaml asks for."""
    datasets: Mapping[str, Manifest]
    """What was prepared, by name."""

    @property
    def reduced(self) -> bool:
        return self.scale != "paper"

    def run_folder(self, stage: str, key: str) -> Path:
        """Return the folder of what people look at of one stage run."""
        return STAGES[stage].details(self.folder, key)


def collect(suite_folder: Path, params: Params) -> Suite:
    """Read the results that a suite's params.yaml asks for.

    Raises:
        UserError: A metrics file, params.yaml or dvc.lock cannot be read.
    """
    folder = suite_folder.resolve()
    root = find_project(folder).root
    lock = read_lock(folder)
    results = {}
    for stage in MEASURED:
        for key, recipe in params.section(stage.name).items():
            name = stage.run_name(key)
            content = _metrics(folder / str(stage.metrics_path(key)))
            made_with, stands_for = (content or {}).get("code"), lock.code(name)
            results[stage.name, key] = StageResult(
                stage=stage.name,
                key=key,
                recipe=recipe,
                state=lock.state(name) if content is not None else "missing",
                metrics=_numbers(content or {}),
                undefined=frozenset(k for k, value in (content or {}).items() if value is None),
                scale=str((content or {}).get("scale", params.scale)),
                fingerprint=(content or {}).get("fingerprint"),
                outputs={
                    path: lock.digest(name, path) for path in stage.output_paths(key).values()
                },
                inputs=lock.inputs(name),
                vouched=bool(made_with and stands_for and made_with != stands_for),
                command=_command(folder, root, name),
            )
    return Suite(
        folder=folder,
        root=root,
        name=params.suite,
        title=params.title,
        scale=params.scale,
        tables=tuple(params.tables),
        experiments=experiments_of(params),
        results=results,
        datasets={
            name: read_manifest(folder / "data" / name)
            for name in params.datasets
            if (folder / "data" / name / FILE_NAME).is_file()
        },
    )


def experiments_of(params: Params) -> tuple[Experiment, ...]:
    """Return a suite's experiments as params.yaml names them."""
    return tuple(
        Experiment(key=key, recipe=recipe, row=params.rows.get(key, _own_label(key, recipe)))
        for key, recipe in params.experiments.items()
    )


def _own_label(key: str, recipe: Any) -> str | None:
    """Return the name of an experiment whose method says nothing of what it is."""
    return key if isinstance(recipe, ImportedRecipe) else None


def _command(folder: Path, root: Path, name: str) -> str:
    if folder == root:
        return f"dvc repro {name}"
    return f"dvc --cd {folder.relative_to(root).as_posix()} repro {name}"


def _metrics(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); delete it and run its stage") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a JSON object; delete it and run its stage")
    return content


def read_metrics(path: Path) -> dict[str, float]:
    """Return the numbers of a metrics file, none where there is none.

    Raises:
        UserError: It cannot be read.
    """
    return _numbers(_metrics(path) or {})


def _numbers(content: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in content.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }
