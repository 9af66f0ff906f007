"""Which encoder a name means: an experiment of the suite, or a path. Reads only."""

import contextlib
import hashlib
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.params import Params, load_params
from pipeline.config.suggest import hint
from pipeline.errors import UserError
from pipeline.project import Project, find_project
from pipeline.results.code import packages_folder, read_code
from pipeline.stages.embedding_job import EncoderPlace
from pipeline.stages.table import PRETRAIN
from pipeline.tables.lock import read_lock
from pipeline.tables.metrics_file import read_metrics_file


@dataclass(frozen=True)
class NamedEncoder:
    """An encoder that was asked for.

    Attributes:
        place: Where it is.
        doubts: In what it is not what the suite would train now, a line each.
    """

    place: EncoderPlace
    doubts: tuple[str, ...] = ()


def project_here(start: Path) -> Project | None:
    """Return the project that a folder is a suite of; None where it is of none."""
    try:
        return find_project(start)
    except UserError:
        return None


def encoder_named(name: str, project: Project | None) -> NamedEncoder:
    """Find the encoder of an experiment, or at a path.

    Args:
        name: An experiment; or a folder with an encoder, or a checkpoint file.
        project: Whose experiments are meant; None: paths only.

    Raises:
        UserError: There is neither, or the experiment has no encoder yet.
    """
    params = None if project is None else load_params(project.params_file)
    if project is not None and params is not None and name in params.experiments:
        return _of_experiment(name, project, params)
    path = Path(name).expanduser()
    if path.exists():
        return NamedEncoder(EncoderPlace(name, path))
    if params is None:
        raise UserError(
            f"{name} is no folder or file, and this is no suite's folder, whose experiments have "
            "names; give the path of an encoder, or cd into a suite"
        )
    known = [*params.experiments]
    raise UserError(
        f"{name} is no experiment of suite {params.suite}{hint(name, known)} and no folder or file "
        f"(experiments: {', '.join(known) or 'none'})"
    )


def _of_experiment(name: str, project: Project, params: Params) -> NamedEncoder:
    folder = project.suite / PRETRAIN.output_paths(name)["encoder"]
    run = PRETRAIN.run_name(name)
    if not folder.is_dir():
        raise UserError(f"{project.shown(folder)} does not exist; run `dvc repro {run}`")
    metrics = project.suite / str(PRETRAIN.metrics_path(name))
    found = read_metrics_file(metrics, f"`dvc repro {run}` restores it")
    reasons = _why_stale(name, project, params)
    doubts = (
        f"{project.shown(folder)} is not what params.yaml and the code would make now "
        f"({reason}); it is used as it is, `dvc repro {run}` makes it anew"
        for reason in reasons
    )
    place = EncoderPlace(
        name, folder, found.fingerprint if found else None, _normalisation(name, params)
    )
    return NamedEncoder(place, tuple(doubts))


def _why_stale(name: str, project: Project, params: Params) -> list[str]:
    """Return why an encoder is none that the suite would train now: one reason at most."""
    run, lock = PRETRAIN.run_name(name), read_lock(project.suite)
    state = lock.state(run)
    if state == "unrecorded":
        return ["dvc.lock does not know it"]
    if state == "outdated":
        return ["a setting or an input has changed"]
    path = PRETRAIN.code_path(params.experiments[name])
    text = None
    with contextlib.suppress(UserError):  # code that cannot be read is said where it is to run
        text = read_code(packages_folder(project.suite)).identities.get(path)
    if text is not None:
        now = hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
        if lock.code(run) not in (None, now):
            return ["its code has changed"]
    return []


def _normalisation(name: str, params: Params) -> str | None:
    """Return the name of the constants that an experiment's dataset is normalised with."""
    dataset = params.experiments[name].dataset
    tokenized = params.tokenizers.get(dataset)
    packed = params.datasets.get(tokenized.dataset if tokenized else dataset)
    return None if packed is None else packed.normalisation
