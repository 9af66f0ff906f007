"""From a table's cell back to the runs behind its number. Reads only."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.suggest import folded, unknown_name
from pipeline.errors import UserError
from pipeline.stages.table import PRETRAIN, STAGES
from pipeline.tables.cells import Cell, Heading, Line, ResultTable
from pipeline.tables.collect import StageResult, Suite
from pipeline.tables.cost import FORWARD, TRAIN, baseline
from pipeline.tables.paper import Paper
from pipeline.tables.provenance import Origin, origin
from pipeline.tables.render import headings_text, label

DATA, ENCODERS = "data/", "runs/pretrain/"


@dataclass(frozen=True)
class TracedCell:
    """A number of a table, and all stage runs that it came from.

    Attributes:
        table: Where it stands.
        line: Its row.
        heading: Its column.
        cell: Itself.
        metric: Its name in the metrics files.
        links: The runs, each before the one that made its encoder.
    """

    table: ResultTable
    line: Line
    heading: Heading
    cell: Cell
    metric: str
    links: tuple["Link", ...]


@dataclass(frozen=True)
class Link:
    """One stage run of a chain.

    Attributes:
        origin: What is known of it.
        folder: Its outputs.
        metrics: Its metrics file.
        value: Its share of the cell; None for a run that made an encoder.
    """

    origin: Origin
    folder: Path
    metrics: Path
    value: float | None
    """Its share of the cell; None for a run that made an encoder."""

    @property
    def result(self) -> StageResult:
        return self.origin.result

    @property
    def name(self) -> str:
        return f"{self.result.stage}@{self.result.key}"


def trace_cell(
    suite: Suite, paper: Paper, tables: Sequence[ResultTable], row: str, metric: str
) -> TracedCell:
    """Find a cell and follow it to the runs that it came from.

    Args:
        suite: Its results.
        paper: The metrics.
        tables: The suite's tables.
        row: Name of a row as far as no other begins with it, or of an experiment in it.
        metric: Name of a metric (`lp_acc1`), or the header of its column (`LP`).

    Raises:
        UserError: There is no such row or metric, or no run has left the number.
    """
    lines = _find_lines(tables, row)
    name, table, line, heading, cell = _find_cell(paper, lines, metric)
    if not cell.counted:
        makers = ", ".join(f"`{run.command}`" for run in cell.missing)
        remedy = f"{makers} makes it" if makers else "this suite does not measure it"
        if any(cell.undefined):
            remedy = "its run has ended, and the data do not give it"
        raise UserError(f"{line.label}, {heading.header}: we have no number; {remedy}")
    links: dict[str, Link] = {}
    for result, value in zip(cell.runs, cell.values, strict=True):
        if value is None:
            continue
        for link in _follow(suite, result, value):
            links.setdefault(link.name, link)
        base = baseline(suite, result.recipe, name) if name in (TRAIN, FORWARD) else None
        if base is not None:  # the cell is a multiple of its number
            for link in _follow(suite, base, 1.0):
                links.setdefault(link.name, link)
    return TracedCell(table, line, heading, cell, name, tuple(links.values()))


def _find_lines(tables: Sequence[ResultTable], row: str) -> list[tuple[ResultTable, Line]]:
    """Return the lines of that name or with that experiment, in whichever tables."""
    lines = [(table, line) for table in tables for line in table.lines if line.keys]
    wanted = folded(row)
    exact = [
        (t, line) for t, line in lines
        if wanted in map(folded, (line.label, label(line), *line.keys))
    ]  # fmt: skip
    begun = [(t, line) for t, line in lines if folded(line.label).startswith(wanted)]
    if not exact and len({line.label for _, line in begun}) == 1:
        exact = begun
    if exact:
        return exact
    names = [name for _, line in lines for name in (line.label, *line.keys)]
    raise UserError(unknown_name("row", row, dict.fromkeys(names)))


def _metric_labels(name: str, heading: Heading) -> set[str]:
    """Return what a metric may be called: its name, or its column's header as it is printed."""
    grouped = f"{heading.group} {heading.header}"
    unit = f"{heading.header} [{heading.metric.unit}]"
    printed = (name, heading.header, grouped, unit, headings_text(heading))
    return {folded(each) for each in printed}


def _find_cell(
    paper: Paper, lines: Sequence[tuple[ResultTable, Line]], metric: str
) -> tuple[str, ResultTable, Line, Heading, Cell]:
    """Return the first cell under that metric that has a number of ours, or the first at all."""
    names = {id(each): name for name, each in paper.metrics.items()}
    cells = [
        (names[id(heading.metric)], table, line, heading, cell)
        for table, line in lines
        for heading, cell in zip(table.headings, line.cells, strict=True)
    ]
    wanted = folded(metric)
    found = [each for each in cells if wanted in _metric_labels(each[0], each[3])]
    if found:
        return next((each for each in found if each[4].counted), found[0])
    valid = [each[0] for each in cells] + [each[3].header for each in cells]
    raise UserError(unknown_name("metric", metric, dict.fromkeys(valid)))


def _follow(suite: Suite, result: StageResult, value: float | None) -> Iterator[Link]:
    stage, key = STAGES[result.stage], result.key
    metrics = suite.folder / str(stage.metrics_path(key))
    yield Link(origin(suite, result), stage.details(suite.folder, key), metrics, value)
    if stage.evaluates and (PRETRAIN.name, key) in suite.results:
        yield from _follow(suite, suite.results[PRETRAIN.name, key], None)
    start = getattr(getattr(result.recipe, "initialise", None), "experiment", None)
    if start is not None and (PRETRAIN.name, start) in suite.results:
        yield from _follow(suite, suite.results[PRETRAIN.name, start], None)
