"""What a stage reads: names checked, paths found. Reads only."""

from pathlib import Path
from typing import Any

from asl_core.recipes.datasets import folders_of
from asl_core.recipes.imported import ImportedRecipe
from asl_core.recipes.pretraining import Pretraining
from asl_core.recipes.tokenizers import DalleTokenizer
from asl_core.recipes.untrained import UntrainedRecipe
from pipeline.config.params import Params, load_params
from pipeline.config.starts import starts_in
from pipeline.config.suggest import unknown_name
from pipeline.config.yaml_files import read_yaml
from pipeline.errors import UserError
from pipeline.project import Project, data_root
from pipeline.stages.request import START
from pipeline.stages.table import PREPARE, PRETRAIN, REPORT, STAGES, STARTED, TOKENIZE, Stage


def find_stage(name: str) -> Stage:
    """Return the row of a stage.

    Raises:
        UserError: There is no such stage.
    """
    if name not in STAGES:
        raise UserError(unknown_name("stage", name, STAGES))
    return STAGES[name]


def recipe_of(params: Params, stage: str, key: str) -> Any:
    """Return the resolved recipe of a stage run; for the report all params.

    Raises:
        UserError: No such stage, or the suite has no such entry for it.
    """
    found = find_stage(stage)
    if found.section is None:
        return params
    section = params.section(stage)
    if key not in section:
        kinds = {PREPARE.name: "dataset", TOKENIZE.name: "tokenizer"}
        kind = kinds.get(stage, "experiment")
        line = unknown_name(f"{kind} of stage {stage} in suite {params.suite}:", key, section)
        raise UserError(f"{line}; add it under `{found.section}` of params.yaml or use another")
    return section[key]


def results_read(stage: Stage, key: str, recipe: object) -> dict[str, str]:
    """Return what a run reads of other runs' results: role -> path in the suite's folder.

    An encoder that is not trained here reads none of our data, though it depends on them.
    """
    if isinstance(recipe, ImportedRecipe | UntrainedRecipe):
        return {}
    return stage.input_paths(key, recipe)


def find_inputs(project: Project, stage: str, key: str, recipe: object) -> dict[str, Path]:
    """Return the paths that a stage reads, by role.

    Raises:
        UserError: One of them has not been made yet; says which command makes it.
    """
    if stage == PREPARE.name:
        root = data_root(project)
        for folder in folders_of(recipe, root):  # type: ignore[arg-type]  # it is a data set's
            if not folder.exists():  # said before torch is loaded, which takes a while
                raise UserError(no_folder(key, folder))
        return {"data_root": root}
    if stage == REPORT.name:
        return {"suite": project.suite}
    if isinstance(recipe, ImportedRecipe):
        return {"imported": _imported_encoder(project, key, recipe)}
    if isinstance(recipe, UntrainedRecipe):
        return {}
    found = STAGES[stage]
    inputs = {role: project.suite / path for role, path in found.input_paths(key, recipe).items()}
    for role, path in inputs.items():
        if not path.is_dir():
            maker = _maker_of(project, role, path, key)
            raise UserError(
                f"{found.run_name(key)} needs {project.shown(path)}, which does not exist; "
                f"run `dvc repro {maker}`"
            )
    if isinstance(recipe, DalleTokenizer):
        inputs["data_root"] = data_root(project)
    if (file := start_file(recipe)) is not None:
        inputs[START] = project.suite / file  # an absolute path stays what it is
    return inputs


def start_file(recipe: object) -> str | None:
    """Return the file or folder with weights that a pre-training begins with, if one is named.

    Whether it is there is asked when it is read: a run that goes on from a checkpoint does without.
    """
    initialise = recipe.initialise if isinstance(recipe, Pretraining) else None
    return None if initialise is None else initialise.path


def _maker_of(project: Project, role: str, path: Path, key: str) -> str:
    """Return what dvc.yaml calls the run that makes an input."""
    if role == "dataset":
        return _maker(project, path.name)
    experiments = read_yaml(project.params_file)
    name = path.name if role == START else key
    started = name in starts_in(experiments)
    return f"{STARTED}@{name}" if started else PRETRAIN.run_name(name)


def _maker(project: Project, dataset: str) -> str:
    """Return the name of the run that makes a dataset."""
    tokenizers = load_params(project.params_file).tokenizers
    return (TOKENIZE if dataset in tokenizers else PREPARE).run_name(dataset)


def _imported_encoder(project: Project, key: str, recipe: ImportedRecipe) -> Path:
    folder = project.suite / recipe.folder  # an absolute path stays what it is
    if not folder.is_dir():
        given = f"FILE --name {folder.name}"
        if recipe.published is not None:
            given = f"--published {recipe.published}"
        raise UserError(
            f"pretrain@{key} needs {project.shown(folder)}, which does not exist; "
            f"run `asl-pipe import-encoder {given}`"
        )
    return folder


def untracked_inputs(project: Project, stage: str, key: str, recipe: object) -> dict[str, Path]:
    """Return what a stage reads in the suite's folder and no other stage's result has.

    That is the encoder of an imported experiment, or the weights that one begins with: their sha256
    is a parameter, so that the result is the same wherever the file is. And it is what is known of
    a dataset's source.

    Returns:
        Path relative to the suite's folder -> where it lies.

    Raises:
        UserError: It is not there.
    """
    if stage == PREPARE.name:
        paths = PREPARE.input_paths(key, recipe).values()
        return {path: project.suite / path for path in paths}
    if (file := start_file(recipe)) is not None:
        place = project.suite / file
        if not place.exists():
            raise UserError(no_weights_to_begin_with(key, place))
        return {} if Path(file).is_absolute() else {file: place}
    if stage != PRETRAIN.name or not isinstance(recipe, ImportedRecipe):
        return {}
    if Path(recipe.folder).is_absolute():
        return {}  # the same file on every machine
    return {recipe.folder: find_inputs(project, stage, key, recipe)["imported"]}


def no_weights_to_begin_with(key: str, place: Path) -> str:
    """Return the line for an experiment whose weights to begin with are not there."""
    return (
        f"pretrain@{key} needs {place}, which does not exist; correct experiments.{key}."
        "initialise.path in params.yaml, or put it there"
    )


def no_weights(dataset: str, file: Path) -> str:
    """Return the line for a tokenizer whose weights are not there."""
    return (
        f"tokenize@{dataset} needs {file}, which does not exist; correct its `weights` in "
        "params.yaml, or set ASL_DATA to the folder from which relative paths start"
    )


def no_folder(dataset: str, folder: Path) -> str:
    """Return the line for a data set whose source is not there."""
    return (
        f"prepare@{dataset} needs {folder}, which does not exist; correct its `path` in "
        "params.yaml, or set ASL_DATA to the folder from which relative paths start"
    )
