"""The report page: one HTML file that loads nothing from anywhere.

Everything that comes from a file (titles, labels, names, values) is escaped; charts are inline
SVG, pictures data URIs. Links to tracked runs are the only addresses that leave the page.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from asl_core.data.manifest import Manifest
from asl_core.recipes.imported import ImportedRecipe
from pipeline.tables import figures, render
from pipeline.tables.collect import Suite
from pipeline.tables.layout import ResultTable, lay_out
from pipeline.tables.paper import Paper
from pipeline.tables.provenance import origins

RunLink = Callable[[str], str | None]
"""Fingerprint -> address of the tracked run, None where there is none."""

_STATES = {"outdated": "out of date", "unrecorded": "not in dvc.lock"}

_CAPTIONS = {
    ("pretrain", "reconstructions"): "Reconstructions of test images under a fixed mask.",
    ("linprobe", "confusion"): "Confusion matrix of the linear probe on the test images.",
    ("finetune", "confusion"): "Confusion matrix after fine-tuning on the test images.",
    ("detect", "detections"): "Detections on test images.",
    ("segment", "segmentations"): "Semantic segmentation of test images.",
}


@dataclass(frozen=True)
class Gallery:
    """One kind of picture, for every experiment that has it."""

    caption: str
    pictures: Sequence[figures.Picture]

    @property
    def wide(self) -> bool:
        """Whether the pictures need a row of the page each to be readable."""
        return any(picture.width > 2 * picture.height for picture in self.pictures)


@dataclass(frozen=True)
class ScaleRow:
    """Pre-training settings of one of the paper's tables or of one experiment."""

    name: str
    model: str
    data: str
    epochs: str
    batch: str


def page(suite: Suite, paper: Paper, run_link: RunLink | None = None) -> str:
    """Return the whole report of a suite.

    Args:
        suite: Its results.
        paper: The paper's numbers.
        run_link: Finds the tracked run of a fingerprint; absent: fingerprints only.
    """
    tables = lay_out(suite, paper)
    labels = _labels(suite, paper)
    found = origins(suite)
    link = run_link or (lambda _: None)
    content = _environment().get_template("report.html.j2").render(
        suite=suite,
        tables=tables,
        labels=labels,
        missing=render.missing_commands(tables),
        reduced_note=render.REDUCED_NOTE.removeprefix("r: reduced scale. "),
        scale_rows=_scale_rows(suite, paper),
        finding=paper.figure1.finding,
        charts={
            "loss": _markup(figures.loss_curves(suite, labels)),
            "similarity": _markup(figures.similarity_against_probe(suite, labels)),
            "layers": _markup(figures.similarity_by_layer(suite, labels)),
        },
        galleries=[
            Gallery(_caption(stage, name), pictures)
            for (stage, name), pictures in figures.pictures(suite, labels).items()
        ],
        origins=found,
        states=_STATES,
        link=link,
        linked=any(link(origin.result.fingerprint or "") for origin in found),
    )  # fmt: skip
    return content.strip() + "\n"


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("pipeline.tables"), autoescape=True, undefined=StrictUndefined
    )
    environment.filters |= {
        "number": partial(_typeset, render.number),
        "signed": partial(_typeset, render.signed),
        "heading_text": render.headings_text,
        "line_label": render.label,
        "remarks": _remarks,
        "duration": duration,
    }
    return environment


def _typeset(form: Callable[[float | None, int], str], value: float | None, decimals: int) -> str:
    """Return a number with a typographic minus, an en dash for none."""
    text = form(value, decimals)
    return "\N{EN DASH}" if text == render.DASH else text.replace("-", "\N{MINUS SIGN}")


def _remarks(table: ResultTable) -> list[str]:
    """Return a table's notes without the one on the scale, which stands above it."""
    return [
        note.replace("*: ", "out of date: ").replace("!: ", "not in dvc.lock: ").replace("`", "")
        for note in render.notes(table)
        if note != render.REDUCED_NOTE
    ]


def _markup(svg: str | None) -> Markup | None:
    return Markup(svg) if svg else None  # made by figures.py; its text is escaped there


def _labels(suite: Suite, paper: Paper) -> dict[str, str]:
    """Return experiment -> name; the key is added where two would have the same name."""
    names = {e.key: e.row or paper.method_label(e.recipe) for e in suite.experiments}
    count = list(names.values()).count
    return {key: f"{name} [{key}]" if count(name) > 1 else name for key, name in names.items()}


def _caption(stage: str, file_name: str) -> str:
    stem = file_name.removesuffix(".png")
    return _CAPTIONS.get((stage, stem), f"{stage}: {stem.replace('_', ' ')}.")


def _scale_rows(suite: Suite, paper: Paper) -> list[ScaleRow]:
    rows = [
        ScaleRow(
            f"paper, {table.number}", table.model, table.pretrained_on, table.epochs, "not stated"
        )
        for table in map(paper.table, suite.tables)
    ]
    for experiment in suite.experiments:
        recipe = experiment.recipe
        rows.append(
            ScaleRow(
                experiment.row or paper.method_label(recipe),
                _model(recipe.model),
                _trained_on(recipe, suite.datasets.get(recipe.dataset)),
                str(recipe.epochs or render.DASH),
                str(getattr(recipe, "batch_size", render.DASH)),
            )
        )
    return rows


def _trained_on(recipe: Any, manifest: Manifest | None) -> str:
    if isinstance(recipe, ImportedRecipe):
        return "trained elsewhere"
    return recipe.dataset + (f", {manifest.counts['train']:,} images" if manifest else "")


def _model(model: Any) -> str:
    return (
        f"ViT, depth {model.depth}, width {model.embed_dim}, {model.num_heads} heads; "
        f"{model.image_size} px, patch {model.patch_size}"
    )


def duration(seconds: float | None) -> str:
    """Return a time as a person reads it: 8 s, 3 min 20 s, 2 h 05 min."""
    if seconds is None:
        return render.DASH
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
