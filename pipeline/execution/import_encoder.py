"""Bring the encoder of a checkpoint into a suite: encoders/<name>, whole or not at all."""

import importlib
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from asl_core.exchange.origin import ImportOptions, Origin
from asl_core.recipes.imported import (
    FOLDER,
    encoder_differences,
    nearest_size,
    shown_differences,
)
from asl_core.recipes.models import MODELS, Vit
from asl_core.recipes.published import PUBLISHED
from pipeline.config.params import NAME, load_params
from pipeline.errors import UserError
from pipeline.execution.download import check_digest, download
from pipeline.execution.publish import publish
from pipeline.project import Project


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
    project: Project,
    checkpoint: Path,
    name: str | None,
    options: ImportOptions,
    force: bool,
    published: str | None = None,
) -> ImportedEncoder:
    """Read a checkpoint and write its encoder into the suite.

    Args:
        project: The project and the suite.
        checkpoint: File of another project.
        name: Of the encoder; absent: made from the file's.
        options: What the file does not say of itself.
        force: Replace an encoder of that name.
        published: What the file must be: a name of PUBLISHED.

    Raises:
        UserError: The name cannot be one, or is taken; or the file is not the published one.
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
    if published is not None:
        check_digest(checkpoint, PUBLISHED[published].digest)
    datasets = load_params(project.params_file).datasets
    folder = project.suite / FOLDER / name
    if folder.exists() and not force:
        raise UserError(f"{project.shown(folder)} exists; use --force to replace it, or --name")
    made = folder.with_name(f".{name}.part")
    shutil.rmtree(made, ignore_errors=True)
    try:
        exchange = importlib.import_module("pipeline.stages.exchange")  # loads torch
        vit, origin, sha256 = exchange.read_checkpoint_into(made, checkpoint, options, published)
        if published is not None:
            _refuse_other_size(checkpoint, vit, published)
        publish(made, folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    path = folder.relative_to(project.suite).as_posix()
    dataset = next(iter(datasets), "DATASET")
    lines = experiment_lines(name, path, sha256, vit, dataset, published)
    return ImportedEncoder(path, sha256, vit, origin, lines)


def _refuse_other_size(checkpoint: Path, vit: Vit, published: str) -> None:
    differences = encoder_differences(vit, PUBLISHED[published].model)
    if differences:
        found = shown_differences(differences)
        raise UserError(
            f"{checkpoint} is not {published}: it has {found}; give its own file, or remove it "
            "and let it be fetched"
        )


def fetch_published(project: Project, name: str) -> Path:
    """Return a published checkpoint on this machine, downloaded unless it is there already.

    Raises:
        UserError: They cannot be reached, or other bytes came.
    """
    weights = PUBLISHED[name]
    return download(weights.url, project.scratch / "downloads", weights.digest)


def _yaml(value: float | str | None) -> str:
    return "null" if value is None else str(value)


def experiment_lines(
    name: str, path: str, sha256: str, vit: Vit, dataset: str, published: str | None = None
) -> str:
    """Return the entry under `experiments` of params.yaml that names an imported encoder."""
    if published is not None:
        fields = f"{{method: imported, published: {published}, dataset: {dataset}}}"
        return f"experiments:\n  {name}: {fields}\n"
    size, changes = nearest_size(vit, MODELS)
    fields = ", ".join([f"size: {size}", *(f"{key}: {_yaml(v)}" for key, v in changes.items())])
    return (
        "experiments:\n"
        f"  {name}:\n"
        "    method: imported\n"
        f"    path: {path}\n"
        f"    sha256: {sha256}\n"
        f"    dataset: {dataset}\n"
        f"    model: {'{' + fields + '}' if changes else size}\n"
    )
