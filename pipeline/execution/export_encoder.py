"""Write the encoder of an experiment in the form of another project."""

import importlib
from dataclasses import dataclass
from pathlib import Path

from asl_core.exchange.origin import Form
from pipeline.config.params import load_params
from pipeline.errors import UserError
from pipeline.execution.inputs import recipe_of
from pipeline.project import Project
from pipeline.stages.table import PRETRAIN

SUFFIXES = {Form.timm: (".safetensors",), Form.mae: (".pth", ".pt")}
"""Form -> what its files end in, the usual first; readers go by it."""


@dataclass(frozen=True)
class ExportedEncoder:
    """A file that others can read; `usage` is the Python that does."""

    path: str
    usage: str


def export_experiment(
    project: Project, key: str, form: Form, out: Path | None, force: bool
) -> ExportedEncoder:
    """Write an experiment's encoder to one file, whole or not at all.

    Args:
        project: The project and the suite.
        key: The experiment.
        form: Whose names and container.
        out: The file; absent: exports/<key>-<form> in the suite's folder.
        force: Replace a file of that name.

    Raises:
        UserError: No such experiment, it has no encoder yet, or the file's name will not do.
        InputError: The encoder is damaged.
    """
    recipe_of(load_params(project.params_file), PRETRAIN.name, key)
    folder = project.suite / PRETRAIN.output_paths(key)["encoder"]
    if not folder.is_dir():
        raise UserError(f"{project.shown(folder)} does not exist; run `dvc repro pretrain@{key}`")
    out = out or project.suite / "exports" / f"{key}-{form}{SUFFIXES[form][0]}"
    if out.suffix not in SUFFIXES[form]:
        raise UserError(f"{out}: a file for {form} ends in {SUFFIXES[form][0]}; rename it")
    if out.exists() and not force:
        raise UserError(f"{project.shown(out)} exists; use --force to replace it, or --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.name}.part")
    exchange = importlib.import_module("pipeline.stages.exchange")  # loads torch
    try:
        usage = exchange.write_exported(part, folder, form, project.shown(out))
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
    return ExportedEncoder(project.shown(out), usage)
