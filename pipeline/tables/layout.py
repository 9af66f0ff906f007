"""Results beside the paper's numbers: which rows, which columns, which cell.

At the paper's scale each table that a suite names is laid out whole, the paper's rows in the
paper's order. A reduced suite gets one table of its own: its experiments as rows, every metric
that it measures as a column, and the paper's number from the first named table that has one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from asl_core.recipes.imported import ImportedRecipe
from pipeline.tables.collect import Experiment, StageResult, Suite
from pipeline.tables.lock import State
from pipeline.tables.paper import Column, Metric, Paper, Table

Status = Literal["result", "missing", "absent"]


@dataclass(frozen=True)
class Cell:
    """One method's number under one metric: the paper's, ours, the difference."""

    metric: Metric
    paper: float | None = None
    ours: float | None = None
    status: Status = "absent"
    """result; missing: the suite asks for it and it is not there; absent: not asked for."""
    result: StageResult | None = None

    @property
    def delta(self) -> float | None:
        """Ours minus the paper's, both as printed, so that the row adds up for a reader."""
        if self.ours is None or self.paper is None:
            return None
        difference = round(self.ours, self.metric.decimals) - self.paper
        return round(difference, self.metric.decimals)

    @property
    def state(self) -> State | Literal["missing"] | None:
        return self.result.state if self.result else None

    @property
    def reduced(self) -> bool:
        return self.result is not None and self.result.scale != "paper"


@dataclass(frozen=True)
class Heading:
    """One metric's column group."""

    metric: Metric
    header: str
    group: str
    paper_table: str
    """Number of the table that the paper's values come from; empty: the paper has none."""
    paper_data: str


@dataclass(frozen=True)
class Line:
    """One row of a result table."""

    label: str
    keys: tuple[str, ...]
    """Experiments that fill it; none for a row that this suite does not run."""
    given: tuple[str, ...]
    source: Literal["run", "quoted", "own"]
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class ResultTable:
    """A table ready to be printed in any format."""

    title: str
    caption: str
    reduced: bool
    given: tuple[str, ...]
    headings: tuple[Heading, ...]
    lines: tuple[Line, ...]
    data_notes: tuple[str, ...]
    """What the prepared data say about themselves that a reader of the numbers must know."""

    def cells(self) -> Iterator[tuple[Line, Heading, Cell]]:
        """Yield every cell, row by row."""
        for line in self.lines:
            for heading, cell in zip(self.headings, line.cells, strict=True):
                yield line, heading, cell


def lay_out(suite: Suite, paper: Paper) -> list[ResultTable]:
    """Return the tables of a suite.

    Raises:
        UserError: params.yaml names a table that the paper does not have.
    """
    tables = [paper.table(reference) for reference in suite.tables]
    if suite.reduced or not tables:
        return [_suite_table(suite, paper, tables)]
    return [_paper_table(suite, paper, table) for table in tables]


def _suite_table(suite: Suite, paper: Paper, tables: Sequence[Table]) -> ResultTable:
    asked = {stage for stage, _ in suite.results}
    names = [name for name in paper.headline if paper.metrics[name].stage in asked]
    compared = {name: _compared_table(name, suite, tables) for name in names}
    order = {method: place for place, method in enumerate(paper.methods)}
    experiments = sorted(suite.experiments, key=lambda e: order.get(e.recipe.method, len(order)))
    lines = tuple(
        Line(
            label=experiment.row or paper.method_label(experiment.recipe),
            keys=(experiment.key,),
            given=(),
            source="own",
            cells=tuple(
                _cell(
                    paper.metrics[name],
                    _paper_value(compared[name], name, suite, experiment),
                    suite,
                    experiment,
                    name,
                )
                for name in names
            ),
        )
        for experiment in experiments
    )
    return ResultTable(
        title=suite.title,
        caption=f"{len(lines)} experiments of the suite {suite.name}.",
        reduced=suite.reduced,
        given=(),
        headings=tuple(_suite_heading(paper.metrics[name], name, compared[name]) for name in names),
        lines=lines,
        data_notes=_data_notes(suite),
    )


def _compared_table(name: str, suite: Suite, tables: Sequence[Table]) -> Table | None:
    """Return the first table with a number for this metric and one of the experiments.

    One table per column: numbers of two tables have different pre-training data and must not
    stand under each other.
    """
    for table in tables:
        if any(_paper_value(table, name, suite, e) is not None for e in suite.experiments):
            return table
    return None


def _paper_value(
    table: Table | None, name: str, suite: Suite, experiment: Experiment
) -> float | None:
    if table is None or (column := _column_of(table, name)) is None:
        return None
    full_scale = not suite.reduced
    row = table.row_of(experiment.recipe, experiment.row, full_scale=full_scale)
    return None if row is None else table.rows[row].values[column]


def _column_of(table: Table, name: str) -> int | None:
    names = [column.metric for column in table.columns]
    return names.index(name) if name in names else None


def _suite_heading(metric: Metric, name: str, table: Table | None) -> Heading:
    column = None if table is None else _column_of(table, name)
    if table is None or column is None:
        return Heading(metric, metric.header, group="", paper_table="", paper_data="")
    data = table.columns[column].data
    return Heading(metric, metric.header, "", paper_table=table.number, paper_data=data)


def _paper_table(suite: Suite, paper: Paper, table: Table) -> ResultTable:
    lines = []
    for index, row in enumerate(table.rows):
        filling = [
            experiment
            for experiment in suite.experiments
            if table.row_of(experiment.recipe, experiment.row, full_scale=True) == index
        ]
        for experiments in _share_lines(table, filling):
            cells = tuple(
                _cell(paper.metrics[column.metric], value, suite, experiment, column.metric)
                for column, value, experiment in zip(
                    table.columns, row.values, experiments, strict=True
                )
            )
            keys = dict.fromkeys(experiment.key for experiment in experiments if experiment)
            name = row.name if row.cite is None else f"{row.name} [{row.cite}]"
            lines.append(Line(name, tuple(keys), row.given, row.source, cells))
    lines += _lines_of_imported(suite, paper, table)
    return ResultTable(
        title=f"{table.number}: {table.title}",
        caption=f"Pre-trained on: {table.pretrained_on}. {table.model}, epochs: {table.epochs}.",
        reduced=suite.reduced,
        given=table.given,
        headings=tuple(_heading(paper, table, column) for column in table.columns),
        lines=tuple(lines),
        data_notes=_data_notes(suite),
    )


def _lines_of_imported(suite: Suite, paper: Paper, table: Table) -> list[Line]:
    """Return a line for each imported encoder that fills no row of the suite's tables."""
    tables = [paper.table(reference) for reference in suite.tables]
    stages = {paper.metrics[column.metric].stage for column in table.columns}
    return [
        Line(
            label=experiment.row or experiment.key,
            keys=(experiment.key,),
            given=("-",) * len(table.given),
            source="own",
            cells=tuple(
                _cell(paper.metrics[column.metric], None, suite, experiment, column.metric)
                for column in table.columns
            ),
        )
        for experiment in suite.experiments
        if isinstance(experiment.recipe, ImportedRecipe)
        and any((stage, experiment.key) in suite.results for stage in stages)
        and all(
            t.row_of(experiment.recipe, experiment.row, full_scale=True) is None for t in tables
        )
    ]


def _share_lines(
    table: Table, experiments: Sequence[Experiment]
) -> list[tuple[Experiment | None, ...]]:
    """Distribute a row's experiments over lines, one experiment a column and line.

    In a table with parts (CIFAR-10, CIFAR-100) an experiment fills the part that is named after
    its data, so the two share a line; otherwise each has its own.
    """
    lines: list[dict[int, Experiment]] = []
    for experiment in experiments:
        filled = {
            index: experiment
            for index, column in enumerate(table.columns)
            if column.part in ("", experiment.recipe.dataset)
        }
        line = next((line for line in lines if not line.keys() & filled.keys()), None)
        if line is None:
            lines.append(filled)
        else:
            line.update(filled)
    return [tuple(map(line.get, range(len(table.columns)))) for line in lines or [{}]]


def _data_notes(suite: Suite) -> tuple[str, ...]:
    return tuple(
        f"Data {name}: {note}"
        for name, manifest in suite.datasets.items()
        for note in manifest.notes
    )


def _heading(paper: Paper, table: Table, column: Column) -> Heading:
    return Heading(
        metric=paper.metrics[column.metric],
        header=column.header,
        group=column.group,
        paper_table=table.number,
        paper_data=column.data,
    )


def _cell(
    metric: Metric, value: float | None, suite: Suite, experiment: Experiment | None, name: str
) -> Cell:
    result = suite.results.get((metric.stage, experiment.key)) if experiment else None
    if result is None:
        return Cell(metric, paper=value)
    ours = result.metrics.get(name)
    status: Status = "missing" if ours is None else "result"
    return Cell(metric, paper=value, ours=ours, status=status, result=result)
