"""A suite's results: from params.yaml what belongs to it, from runs/*.json and dvc.lock what is.

Never from a glob: an experiment that was removed leaves its files behind. Reads only.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from asl_core.data.manifest import FILE_NAME, Manifest, read_manifest
from asl_core.recipes.imported import ImportedRecipe
from pipeline.config.params import Params, load_params
from pipeline.config.sweeps import Sweep
from pipeline.project import Project, find_project
from pipeline.results.vouchings import vouchings_in
from pipeline.stages.table import MEASURED, STAGES, Stage
from pipeline.tables.lock import Lock, State, read_lock
from pipeline.tables.metrics_file import MetricsFile, read_metrics_file
from pipeline.tables.paper import load_paper


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
    file: str
    """The metrics file, from the project's root."""
    undefined: frozenset[str] = frozenset()
    """Metrics that the run looked for and that its data do not give: null in its file."""
    difference: str = ""
    """In what that file disagrees with dvc.lock, and what to do; empty where it does not."""
    test_images: int | None = None
    """How many images it was measured on, where it says so."""
    vouched: bool = False
    """Made with other code than it stands for: somebody has shown that this makes the same."""

    @property
    def short_fingerprint(self) -> str:
        """First eight characters, enough to find the run."""
        return (self.fingerprint or "")[:8]

    @property
    def warning(self) -> str:
        """What to say of a file that dvc.lock does not stand behind, and what to do; else empty."""
        return f"{self.file} differs from dvc.lock: {self.difference}" if self.difference else ""

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
    tokenized: Mapping[str, str]
    """Dataset with a tokenizer -> the one whose images it has."""
    sweeps: Mapping[str, Sweep] = field(default_factory=dict)
    """Experiment of suite.yaml -> the runs that its sweep has become."""

    @property
    def reduced(self) -> bool:
        return self.scale == "reduced"

    def images_of(self, dataset: str) -> str:
        """Return the dataset whose images a dataset has: itself, where it has no tokenizer."""
        return self.tokenized.get(dataset, dataset)

    def on_images(self, recipe: Any) -> Any:
        """Return the settings of a run as if its dataset had no tokenizer."""
        return replace(recipe, dataset=self.images_of(recipe.dataset))

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
    results = {
        (stage.name, key): _result(folder, root, lock, stage, key, recipe, params.scale)
        for stage in MEASURED
        for key, recipe in params.section(stage.name).items()
    }
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
            for name in (*params.datasets, *params.tokenizers)
            if (folder / "data" / name / FILE_NAME).is_file()
        },
        tokenized={name: item.dataset for name, item in params.tokenizers.items()},
        sweeps=params.sweeps,
    )


def read_suite(project: Project) -> Suite:
    """Read the results of a project's suite.

    Raises:
        UserError: See `collect`; or params.yaml names a table that the paper does not have.
    """
    params = load_params(project.params_file, load_paper().references())
    return collect(project.suite, params)


def _result(
    folder: Path, root: Path, lock: Lock, stage: Stage, key: str, recipe: Any, scale: str
) -> StageResult:
    """Return what a run left, or that it left nothing."""
    name, path = stage.run_name(key), str(stage.metrics_path(key))
    command = _command(folder, root, name)
    found = read_metrics_file(folder / path, f"`{command}` restores it")
    recorded = lock.digest(name, path)
    state = "unrecorded" if recorded is None else lock.state(name)
    other_code = bool(found and found.code and lock.code(name) not in (None, found.code))
    vouched = bool(found and other_code and _is_vouched(root, path, found, lock.code(name)))
    return StageResult(
        stage=stage.name,
        key=key,
        recipe=recipe,
        state=state if found else "missing",
        metrics=found.numbers if found else {},
        undefined=found.undefined if found else frozenset(),
        scale=(found and found.scale) or scale,
        fingerprint=found.fingerprint if found else None,
        outputs={each: lock.digest(name, each) for each in stage.output_paths(key).values()},
        inputs=lock.inputs(name),
        command=command,
        file=(folder / path).relative_to(root).as_posix(),
        difference=_difference(found, recorded, command, other_code and not vouched),
        test_images=found.test_images if found else None,
        vouched=vouched,
    )


def _is_vouched(root: Path, path: str, found: MetricsFile, code: str | None) -> bool:
    """Return whether somebody has shown that a code makes the result that was made with another."""
    return any(each.new_code == code for each in vouchings_in(root, path, found.fingerprint))


def _difference(
    found: MetricsFile | None, recorded: str | None, command: str, unknown_code: bool
) -> str:
    """Return in what a metrics file disagrees with dvc.lock, and what to do."""
    if found is None or recorded is None:
        return ""
    if cause := found.difference(recorded):
        return (
            f"{cause}; `{command}` restores the recorded one, as does `git checkout` where it is "
            "committed"
        )
    if unknown_code:
        again = command.replace(" repro ", " repro -f -s ")
        return (
            "it was made with other code than dvc.lock says, and nobody vouched for that; "
            f"`{again}` makes it with the present code"
        )
    return ""


def doubts(results: Iterable[StageResult]) -> list[str]:
    """Return a line for each file that is not the recorded one, and one for all not recorded."""
    found = list(results)
    unrecorded = [result.file for result in found if result.state == "unrecorded"]
    lines = [result.warning for result in found if result.difference]
    if unrecorded:
        lines.append(f"not in dvc.lock: {', '.join(unrecorded)}; `dvc repro` records what it makes")
    return lines


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
