"""Write the encoder of an experiment as others read it: a folder with a model card."""

import importlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asl_core.exchange.origin import Form
from asl_core.recipes.datasets import Packing
from pipeline.config.params import Params, load_params
from pipeline.errors import UserError
from pipeline.execution.card_facts import ExportFacts, gather_card
from pipeline.execution.inputs import recipe_of
from pipeline.execution.model_card import model_card
from pipeline.execution.publish import publish
from pipeline.project import Project
from pipeline.stages.table import PRETRAIN
from pipeline.tables.collect import read_suite
from pipeline.tables.paper import load_paper

CARD = "README.md"
WRITTEN = {
    CARD, "config.json", "preprocessor_config.json",
    "model.safetensors", "encoder.pth", "model.onnx", "model.onnx.data",
}  # fmt: skip
"""Names of the files that exports consist of; a folder with others is not replaced."""
FILE_ENDINGS = (".safetensors", ".pth", ".pt", ".onnx")


@dataclass(frozen=True)
class ExportedEncoder:
    """A folder that others can read.

    Attributes:
        path: The folder, from the suite's.
        files: Names of its files.
        usage: The Python that reads it.
        checked: Who has read it, and how far its features are from ours.
        preprocessing: What images go through before it, a sentence.
    """

    path: str
    files: tuple[str, ...]
    usage: str
    checked: str
    preprocessing: str


def export_experiment(
    project: Project, key: str, form: Form, out: Path | None, force: bool
) -> ExportedEncoder:
    """Write an experiment's encoder into one folder, whole or not at all.

    Args:
        project: The project and the suite.
        key: The experiment.
        form: Who is to read it.
        out: The folder; absent: exports/<key>-<form> in the suite's folder.
        force: Replace an earlier export.

    Raises:
        UserError: No such experiment, it has no encoder yet, or the folder will not do.
        InputError: The encoder is damaged, the form cannot hold it, or a library is missing.
    """
    params = load_params(project.params_file)
    recipe = recipe_of(params, PRETRAIN.name, key)
    encoder = project.suite / PRETRAIN.output_paths(key)["encoder"]
    if not encoder.is_dir():
        raise UserError(f"{project.shown(encoder)} does not exist; run `dvc repro pretrain@{key}`")
    out = project.suite / "exports" / f"{key}-{form}" if out is None else Path(os.path.abspath(out))
    _check_free(project, out, force)
    made = out.with_name(f".{out.name}.part-{os.getpid()}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir()
        exported = _write(project, params, recipe.dataset, key, form, made, out)
        for file in made.iterdir():
            _flush(file)
        publish(made, out)
    except OSError as error:
        raise UserError(
            f"{project.shown(out)} cannot be written ({error.strerror or error}); "
            "name another folder with --out"
        ) from error
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return exported


def _write(
    project: Project, params: Params, dataset: str, key: str, form: Form, made: Path, out: Path
) -> ExportedEncoder:
    """Write all files, the card last."""
    suite = read_suite(project)  # what it refuses is said before torch is loaded
    exchange = importlib.import_module("pipeline.stages.exchange")
    packing = _packing(params, dataset)
    encoder = project.suite / PRETRAIN.output_paths(key)["encoder"]
    data = project.suite / "data" / suite.images_of(dataset)
    found: Any = exchange.write_exported(made, encoder, form, packing.mean, packing.std, data)
    facts = ExportFacts(
        form=form,
        usage=found.usage(out.name),
        preprocessing=found.preprocessing.in_words(),
        checked=_checked(found.comparison),
        vit=found.vit,
        parameters=found.parameters,
    )
    card = model_card(gather_card(suite, load_paper(), key, facts))
    (made / CARD).write_text(card, encoding="utf-8")
    files = tuple(sorted(file.name for file in made.iterdir()))
    usage = found.usage(project.shown(out))
    return ExportedEncoder(project.shown(out), files, usage, facts.checked, facts.preprocessing)


def _checked(comparison: Any) -> str:
    """Return what reading the folder has shown."""
    how = (
        f"no feature differs from ours by more than {comparison.difference:.1e} "
        f"(the largest is {comparison.largest:.1f})"
        if comparison.difference
        else "its features are ours, bit for bit"
    )
    return f"Read by {comparison.reader}: on drawn images {how}."


def _packing(params: Params, dataset: str) -> Packing:
    """Return the recipe of the images that an experiment was trained on, or belongs to.

    Raises:
        UserError: params.yaml has no such dataset.
    """
    tokenizer = params.tokenizers.get(dataset)
    name = dataset if tokenizer is None else tokenizer.dataset
    if name not in params.datasets:
        raise UserError(f"params.yaml has no dataset {name}, whose normalisation an export states")
    return params.datasets[name]


def _check_free(project: Project, out: Path, force: bool) -> None:
    """Refuse a place where something is that an export may not replace.

    Raises:
        UserError: It is a file, an earlier export without `force`, or somebody's folder.
    """
    if out.suffix in FILE_ENDINGS:
        raise UserError(
            f"{project.shown(out)}: an export is a folder, with several files; name it without "
            f"{out.suffix}"
        )
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise UserError(f"{project.shown(out)} is no folder; name another with --out")
    if not out.is_dir():
        return
    try:
        names = sorted(path.name for path in out.iterdir())
    except OSError as error:
        raise UserError(f"{project.shown(out)} cannot be read: {error.strerror}") from error
    if others := [name for name in names if name not in WRITTEN]:
        raise UserError(
            f"{project.shown(out)} holds other files ({others[0]}) and is not replaced; name "
            "another folder with --out"
        )
    if names and not force:
        raise UserError(f"{project.shown(out)} exists; use --force to replace it, or --out")


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
