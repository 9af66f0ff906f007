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
from asl_core.wording import counted
from pipeline.stages.table import MEASURED
from pipeline.tables import notes, render
from pipeline.tables.cells import Cell, ResultTable
from pipeline.tables.collect import Suite
from pipeline.tables.contrastive import read_contrastive
from pipeline.tables.figures.contrastive import contrastive_view
from pipeline.tables.figures.drawing import read_journals
from pipeline.tables.figures.pictures import Picture, pictures
from pipeline.tables.figures.similarity import (
    find_points,
    similarity_against_probe,
    similarity_by_layer,
)
from pipeline.tables.figures.training import branch_curves, loss_curves
from pipeline.tables.figures.watching import watched_curves
from pipeline.tables.floor import is_marked
from pipeline.tables.health import COLLAPSED_BELOW
from pipeline.tables.layout import contrastive_table, lay_out, similarity_table
from pipeline.tables.paper import Paper
from pipeline.tables.provenance import origins
from pipeline.tables.replicates import Replicates, experiment_labels, find_replicates

RunLink = Callable[[str], str | None]
"""Fingerprint -> address of the tracked run, None where there is none."""

PACKAGE_DATA = ("templates/*.j2", "templates/*.css")

_STATES = {"outdated": "out of date", "unrecorded": "not in dvc.lock"}
_DIFFERS = "differs from dvc.lock"
_NOT_ABOVE = "not above untrained"
_MARKS = {
    "u": _NOT_ABOVE, "*": _STATES["outdated"], "!": _STATES["unrecorded"], "?": _DIFFERS,
}  # fmt: skip
_NOT_TRAINED = {"imported": "trained elsewhere", "untrained": "none"}
"""Method -> what stands where the others have the data that they were trained on."""

_CAPTIONS = {
    (stage.name, picture): caption
    for stage in MEASURED
    for picture, caption in stage.captions.items()
}


@dataclass(frozen=True)
class Gallery:
    """One kind of picture, for every experiment that has it."""

    caption: str
    pictures: Sequence[Picture]

    @property
    def wide(self) -> bool:
        """Whether the pictures need a row of the page each to be readable."""
        return any(picture.width > 2 * picture.height for picture in self.pictures)


@dataclass(frozen=True)
class ScaleRow:
    """Pre-training settings of one of the paper's tables or of one row of ours."""

    name: str
    model: str
    data: str
    epochs: str
    batch: str
    seeds: str


def page(suite: Suite, paper: Paper, run_link: RunLink | None = None) -> str:
    """Return the whole report of a suite.

    Args:
        suite: Its results.
        paper: The paper's numbers.
        run_link: Finds the tracked run of a fingerprint; absent: fingerprints only.
    """
    tables = lay_out(suite, paper)
    similarity, contrastive = similarity_table(suite, paper), contrastive_table(suite, paper)
    groups = find_replicates(suite, paper)
    points, left_out = find_points(suite, groups)
    found = origins(suite)
    link = run_link or (lambda _: None)
    content = _environment().get_template("report.html.j2").render(
        suite=suite,
        tables=tables,
        similarity_table=similarity,
        contrastive_table=contrastive,
        labels=experiment_labels(groups),
        missing=render.missing_commands([*tables, *filter(None, (similarity, contrastive))]),
        reduced_note=notes.REDUCED_NOTE.removeprefix("r: reduced scale. "),
        scale_rows=_scale_rows(suite, paper, groups),
        finding=paper.figure1.finding,
        left_out=left_out,
        collapsed_below=COLLAPSED_BELOW,
        charts={name: Markup(chart) if chart else None for name, chart in {
            **_training_charts(suite, groups),
            "similarity": similarity_against_probe(points),
            "layers": similarity_by_layer(suite, groups),
            "contrastive": _contrastive_chart(suite, groups),
        }.items()},  # made by our own figures, which escape their text
        galleries=[
            Gallery(_caption(stage, name), shown)
            for (stage, name), shown in pictures(suite, groups).items()
        ],
        origins=found,
        states=_STATES,
        differs=_DIFFERS,
        not_above=_NOT_ABOVE,
        link=link,
        linked=any(link(origin.result.fingerprint or "") for origin in found),
    )  # fmt: skip
    return content.strip() + "\n"


def _training_charts(suite: Suite, groups: Sequence[Replicates]) -> dict[str, str | None]:
    journals = read_journals(suite, [key for group in groups for key in group.keys])
    return {
        "loss": loss_curves(journals, groups),
        "branch": branch_curves(journals, groups),
        "watched": watched_curves(journals, groups),
    }


def _contrastive_chart(suite: Suite, groups: Sequence[Replicates]) -> str | None:
    chances = {
        result.metrics["patch_retrieval_chance"]
        for result in suite.results.values()
        if "patch_retrieval_chance" in result.metrics
    }
    return contrastive_view(read_contrastive(suite, groups), groups, sorted(chances))


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("pipeline.tables"), autoescape=True, undefined=StrictUndefined
    )
    environment.filters |= {
        "measured": partial(_typeset, render.measured),
        "papers_number": partial(_typeset, render.papers_number),
        "difference": partial(_typeset, render.difference),
        "seed_count": notes.seed_count,
        "marked": is_marked,
        "heading_text": render.headings_text,
        "line_label": render.label,
        "remarks": _remarks,
        "duration": duration,
    }
    return environment


def _typeset(form: Callable[[Cell], str], cell: Cell) -> str:
    """Return a number with a typographic minus, an en dash for none."""
    text = form(cell)
    return "\N{EN DASH}" if text == render.DASH else text.replace("-", "\N{MINUS SIGN}")


def _remarks(table: ResultTable) -> list[str]:
    """Return a table's notes without the one on the scale, which stands above it.

    A mark is called what the cells of this page have in its place.
    """
    found = (note for note in notes.notes(table) if note != notes.REDUCED_NOTE)
    return [_in_words(note).replace("`", "") for note in found]


def _in_words(note: str) -> str:
    sign, colon, text = note.partition(": ")
    return f"{_MARKS[sign]}: {text}" if colon and sign in _MARKS else note


def _caption(stage: str, file_name: str) -> str:
    stem = file_name.removesuffix(".png")
    return _CAPTIONS.get((stage, stem), f"{stage}: {stem.replace('_', ' ')}.")


def _scale_rows(suite: Suite, paper: Paper, groups: Sequence[Replicates]) -> list[ScaleRow]:
    rows = [
        ScaleRow(
            f"paper, {table.number}", table.model, table.pretrained_on, table.epochs, "not stated",
            "not stated",
        )
        for table in map(paper.table, suite.tables)
    ]  # fmt: skip
    for group in groups:
        recipe = group.recipe
        # an encoder that is not trained here has a size, and maybe epochs that its authors state
        seeds = [str(getattr(e.recipe, "seed", render.DASH)) for e in group.experiments]
        rows.append(
            ScaleRow(
                group.label,
                _model(recipe.model),
                _trained_on(recipe, suite.datasets.get(recipe.dataset)),
                str(getattr(recipe, "epochs", None) or render.DASH),
                str(getattr(recipe, "batch_size", render.DASH)),
                ", ".join(seeds),
            )
        )
    return rows


def _trained_on(recipe: Any, manifest: Manifest | None) -> str:
    if recipe.method in _NOT_TRAINED:
        return _NOT_TRAINED[recipe.method]
    return recipe.dataset + (f", {counted(manifest.counts['train'], 'image')}" if manifest else "")


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
