"""The report page: one HTML file that loads nothing from anywhere.

Everything that comes from a file (titles, labels, names, values) is escaped; charts are inline
SVG, pictures data URIs. Links to tracked runs are the only addresses that leave the page, and only
where whoever receives the file can reach them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from asl_core.data.manifest import Manifest
from asl_core.wording import counted
from pipeline.stages.table import MEASURED
from pipeline.tables import notes, render, spending_formats
from pipeline.tables.cells import Cell, Heading, ResultTable
from pipeline.tables.collect import Suite
from pipeline.tables.contrastive import read_contrastive
from pipeline.tables.figures.contrastive import contrastive_view
from pipeline.tables.figures.drawing import LEGEND_ROWS, colour, marker, read_journals
from pipeline.tables.figures.pictures import Picture, pictures
from pipeline.tables.figures.similarity import (
    find_points,
    similarity_against_probe,
    similarity_by_layer,
)
from pipeline.tables.figures.sweep import sweep_chart
from pipeline.tables.figures.training import branch_curves, loss_curves
from pipeline.tables.figures.watching import watched_curves
from pipeline.tables.floor import is_marked
from pipeline.tables.health import COLLAPSED_BELOW
from pipeline.tables.layout import contrastive_table, lay_out, similarity_table
from pipeline.tables.paper import Paper
from pipeline.tables.parts import Part, divide
from pipeline.tables.provenance import origins
from pipeline.tables.replicates import Replicates, experiment_labels, find_replicates
from pipeline.tables.same_images import read_same_images, scale_stops
from pipeline.tables.settings import stage_settings
from pipeline.tables.suite_spending import NO_FACTORS, suite_spending
from pipeline.tables.sweep import sweep_tables
from pipeline.tables.sweep_formats import cells, headings
from pipeline.tables.uncertainty import error_text

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

_PAGE = 1160.0
"""Pixels for a table on a page of 1,280, with room to spare: fonts differ between machines."""
_LETTER, _SMALL_LETTER, _PADDING = 8.2, 7.0, 16.0
"""Pixels of a digit of a number, of a letter below it, and of the space around a cell."""
_MARKERS = dict(zip("osD^vPX*", "\u25cf\u25a0\u25c6\u25b2\u25bc\u271a\u2716\u2605", strict=True))
"""Marker of a chart -> the same as a character."""
_LOCAL = ("localhost", "0.0.0.0", "::1")

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


@dataclass(frozen=True)
class Entry:
    """How a row of the tables is drawn in the charts."""

    label: str
    colour: str
    marker: str
    dashed: bool


@dataclass(frozen=True)
class ShownSweep:
    """A sweep as the page has it: texts, and a chart of its own."""

    experiment: str
    words: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str]
    chart: Markup | None


@dataclass(frozen=True)
class ShownCost:
    """What the results cost, as the page has it: texts."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class ScaleRow:
    """Pre-training settings of one of the paper's tables or of one row of ours."""

    name: str
    model: str
    data: str
    epochs: str
    batch: str
    rate: str
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
    address = run_link or (lambda _: None)

    def link(fingerprint: str) -> str | None:
        page = address(fingerprint)
        return page if page and is_shared(page) else None

    def tracked(fingerprint: str) -> str | None:
        page = address(fingerprint)
        return None if page is None else run_name(page)

    content = _environment().get_template("report.html.j2").render(
        suite=suite,
        tables=tables,
        similarity_table=similarity,
        contrastive_table=contrastive,
        labels=experiment_labels(groups),
        parts=_parts,
        about=partial(_about, suite),
        chart_key=_chart_key(groups),
        settings=stage_settings(suite, groups),
        sweeps=_sweeps(suite),
        cost=_cost(suite),
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
        same_images=read_same_images(suite, groups),
        scale_stops=scale_stops(),
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
        tracked=tracked,
        named=any(tracked(origin.result.fingerprint or "") for origin in found),
    )  # fmt: skip
    return content.strip() + "\n"


def _sweeps(suite: Suite) -> list[ShownSweep]:
    tables = sweep_tables(suite) if suite.sweeps else []
    return [
        ShownSweep(
            table.experiment, table.metric.words, headings(table), cells(table), table.notes,
            Markup(chart) if (chart := sweep_chart(table, number)) else None,
        )
        for number, table in enumerate(tables)
    ]  # fmt: skip


def _cost(suite: Suite) -> ShownCost | None:
    rows = suite_spending(suite)
    if not rows:
        return None
    names, lines = spending_formats.table(rows, NO_FACTORS)
    return ShownCost(names, lines)


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


def is_shared(address: str) -> bool:
    """Return whether others can open an address too: it is no file, and of no machine's own."""
    parts = urlsplit(address)
    host = parts.hostname or ""
    return parts.scheme in ("http", "https") and not (host in _LOCAL or host.startswith("127."))


def run_name(address: str) -> str:
    """Return what a tracker calls a run, by the address of its page: `.../runs/<id>?...`."""
    parts = urlsplit(address)
    return (parts.fragment or parts.path).partition("?")[0].rstrip("/").rpartition("/")[2]


def _parts(table: ResultTable) -> list[Part]:
    """Return a table's parts, each no wider than the page."""
    longest = max((len(render.label(line)) for line in table.lines), default=0)
    first = _LETTER * min(24, max(12, longest))  # longer ones are set in several lines
    given = sum(
        _LETTER * max(map(len, [name, *(line.given[place] for line in table.lines)])) + _PADDING
        for place, name in enumerate(table.given)
    )
    return divide(table, [_width(table, i) for i in range(len(table.headings))],
                  _PAGE - first - _PADDING - given)  # fmt: skip


def _width(table: ResultTable, place: int) -> float:
    """Return about how wide a column group is, in pixels."""
    heading = table.headings[place]
    forms = {"paper": render.papers_number, "ours": render.measured, "delta": render.difference}
    columns = 0.0
    for subhead in heading.subheads:
        texts = [forms[subhead](line.cells[place]) for line in table.lines]
        letters = 9 if subhead == "ours" else len(subhead)  # of "untrained", of a fingerprint
        small = _SMALL_LETTER * letters
        columns += max(small, *(_LETTER * len(text) for text in texts)) + _PADDING
    words = f"{render.headings_text(heading)} {heading.paper_table}".split()
    return max(columns, _LETTER * max(map(len, words)) + _PADDING)


def _about(suite: Suite, table: ResultTable, place: int) -> list[str]:
    """Return what stands below a column's name: data, number of test images, chance, the paper."""
    cells = [line.cells[place] for line in table.lines]
    heading = table.headings[place]
    if suite.scale == "own":  # nothing of it could be in the paper
        return _tested_on(suite, heading, cells)
    paper = f"paper: {heading.paper_table}" if heading.paper_table else "not in the paper"
    return [*_tested_on(suite, heading, cells), paper]


def _tested_on(suite: Suite, heading: Heading, cells: Sequence[Cell]) -> list[str]:
    if heading.metric.tested is None:
        return []
    runs = [run for cell in cells for run in cell.counted]
    data = dict.fromkeys(suite.images_of(run.recipe.dataset) for run in runs)
    images = sorted({run.test_images for run in runs if run.test_images})
    chances = {cell.chance for cell in cells if cell.counted and cell.chance is not None}
    lines = [" or ".join(data)] if data else []
    lines += [" or ".join(f"{count:,}" for count in images) + " images"] if images else []
    if len(chances) == 1:
        lines.append(f"chance {render.number(chances.pop(), heading.metric.decimals)}")
    return lines


def _error(cell: Cell) -> str:
    """Return the standard error of a single run's number, as far as known."""
    if cell.status != "result" or len(cell.measured) != 1 or cell.deviation is None:
        return ""
    return error_text(cell.deviation, cell.metric.decimals)


def _chart_key(groups: Sequence[Replicates]) -> list[Entry]:
    """Return what the charts mean by their colours, where that is not said in each of them."""
    if len(groups) <= LEGEND_ROWS:
        return []
    return [
        Entry(group.label, colour(place), _MARKERS[marker(place)],
              getattr(group.recipe, "design", "") == "dle")
        for place, group in enumerate(groups)
    ]  # fmt: skip


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("pipeline.tables"), autoescape=True, undefined=StrictUndefined
    )
    environment.filters |= {
        "measured": partial(_typeset, render.measured),
        "papers_number": partial(_typeset, render.papers_number),
        "difference": partial(_typeset, render.difference),
        "seed_count": notes.seed_count,
        "standard_error": _error,
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
            "not stated", "not stated",
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
                _rate(recipe),
                ", ".join(seeds),
            )
        )
    return rows


def _trained_on(recipe: Any, manifest: Manifest | None) -> str:
    if recipe.method in _NOT_TRAINED:
        return _NOT_TRAINED[recipe.method]
    return recipe.dataset + (f", {counted(manifest.counts['train'], 'image')}" if manifest else "")


def _rate(recipe: Any) -> str:
    """Return the learning rate after the warm-up."""
    rate = getattr(recipe, "peak_lr", None)
    return render.DASH if rate is None else f"{rate:g}"


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
