"""Bring the encoder of a checkpoint into a suite: encoders/<name>, whole or not at all."""

import importlib
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from asl_core.exchange.origin import ImportOptions, Origin
from asl_core.recipes.imported import nearest_size
from asl_core.recipes.models import MODELS, Vit
from pipeline.config.params import NAME, load_params
from pipeline.errors import UserError
from pipeline.execution.publish import publish
from pipeline.project import Project

FOLDER = "encoders"


@dataclass(frozen=True)
class ImportedEncoder:
    """An encoder that is now in the suite.

    Attributes:
        path: Its folder, from the suite's.
        sha256: Of its encoder.safetensors.
        vit: Its sizes.
        origin: Where it comes from.
        lines: What to paste into params.yaml.
    """

    path: str
    sha256: str
    vit: Vit
    origin: Origin
    lines: str


def import_checkpoint(
    project: Project, checkpoint: Path, name: str | None, options: ImportOptions, force: bool
) -> ImportedEncoder:
    """Read a checkpoint and write its encoder into the suite.

    Args:
        project: The project and the suite.
        checkpoint: File of another project.
        name: Of the encoder; absent: made from the file's.
        options: What the file does not say of itself.
        force: Replace an encoder of that name.

    Raises:
        UserError: The name cannot be one, or is taken.
        InputError: The checkpoint cannot be imported; says which tensor stands against it.
    """
    if not checkpoint.is_file():  # said before torch is loaded, which takes a while
        raise UserError(f"{checkpoint} is not a file; give the path of a checkpoint")
    name = name or re.sub(r"[^a-z0-9_-]+", "-", checkpoint.stem.lower()).strip("-")
    if not NAME.fullmatch(name):
        raise UserError(
            f"got the name {name!r}, expected lower-case letters, digits, - and _, a letter first; "
            "give another with --name"
        )
    datasets = load_params(project.params_file).datasets
    folder = project.suite / FOLDER / name
    if folder.exists() and not force:
        raise UserError(f"{project.shown(folder)} exists; use --force to replace it, or --name")
    made = folder.with_name(f".{name}.part")
    shutil.rmtree(made, ignore_errors=True)
    try:
        exchange = importlib.import_module("pipeline.stages.exchange")  # loads torch
        vit, origin, sha256 = exchange.read_checkpoint_into(made, checkpoint, options)
        publish(made, folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    path = folder.relative_to(project.suite).as_posix()
    lines = experiment_lines(name, path, sha256, vit, next(iter(datasets), "DATASET"))
    return ImportedEncoder(path, sha256, vit, origin, lines)


def experiment_lines(name: str, path: str, sha256: str, vit: Vit, dataset: str) -> str:
    """Return the entry under `experiments` of params.yaml that names an imported encoder."""
    size, changes = nearest_size(vit, MODELS)
    fields = ", ".join([f"size: {size}", *(f"{key}: {value}" for key, value in changes.items())])
    return (
        "experiments:\n"
        f"  {name}:\n"
        "    method: imported\n"
        f"    path: {path}\n"
        f"    sha256: {sha256}\n"
        f"    dataset: {dataset}\n"
        f"    model: {'{' + fields + '}' if changes else size}\n"
    )
