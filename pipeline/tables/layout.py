"""Results beside the paper's numbers: which rows, which columns, which cell.

At the paper's scale each table that a suite names is laid out whole, the paper's rows in the
paper's order. A reduced suite gets one table of its own: its experiments as rows, every metric
that it measures as a column, and the paper's number from the first named table that has one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

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
        return round(difference, self.metric.decimals) + 0.0  # no negative zero

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
    columns = [
        _SuiteColumn(name, suite, paper, tables)
        for name in paper.headline
        if paper.metrics[name].stage in asked
    ]
    order = list(paper.methods)
    experiments = sorted(
        suite.experiments,
        key=lambda e: order.index(e.recipe.method) if e.recipe.method in order else len(order),
    )
    lines = tuple(
        Line(
            label=experiment.row or paper.method_label(experiment.recipe),
            keys=(experiment.key,),
            given=(),
            source="own",
            cells=tuple(
                _cell(column.metric, column.paper_value(experiment), suite, experiment, column.name)
                for column in columns
            ),
        )
        for experiment in experiments
    )
    return ResultTable(
        title=suite.title,
        caption=f"{len(lines)} experiments of the suite {suite.name}.",
        reduced=suite.reduced,
        given=(),
        headings=tuple(column.heading for column in columns),
        lines=lines,
    )


@dataclass
class _SuiteColumn:
    """A metric of a suite and the one table of the paper that it is compared with.

    One table per column: numbers of two tables have different pre-training data and must not
    stand under each other.
    """

    name: str
    suite: Suite
    paper: Paper
    tables: Sequence[Table]
    table: Table | None = field(init=False)
    index: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.table = None
        for table in self.tables:
            names = [column.metric for column in table.columns]
            if self.name in names:
                self.table, self.index = table, names.index(self.name)
                if any(self.paper_value(e) is not None for e in self.suite.experiments):
                    return
        self.table = None

    @property
    def metric(self) -> Metric:
        return self.paper.metrics[self.name]

    @property
    def heading(self) -> Heading:
        return Heading(
            metric=self.metric,
            header=self.metric.header,
            group="",
            paper_table=self.table.number if self.table else "",
            paper_data=self.table.columns[self.index].data if self.table else "",
        )

    def paper_value(self, experiment: Experiment) -> float | None:
        if self.table is None:
            return None
        row = self.table.row_of(
            experiment.recipe, experiment.row, full_scale=not self.suite.reduced
        )
        return None if row is None else self.table.rows[row].values[self.index]


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
    return ResultTable(
        title=f"{table.number}: {table.title}",
        caption=f"Pre-trained on: {table.pretrained_on}. {table.model}, epochs: {table.epochs}.",
        reduced=suite.reduced,
        given=table.given,
        headings=tuple(_heading(paper, table, column) for column in table.columns),
        lines=tuple(lines),
    )


def _share_lines(
    table: Table, experiments: Sequence[Experiment]
) -> list[tuple[Experiment | None, ...]]:
    """Distribute a row's experiments over lines, one experiment a column and line.

    In a table with parts (CIFAR-10, CIFAR-100) an experiment fills the part that is named after
    its data, so the two share a line; otherwise each has its own.
    """
    lines: list[list[Experiment | None]] = []
    for experiment in experiments:
        fills = [column.part in ("", experiment.recipe.dataset) for column in table.columns]
        free = (
            line
            for line in lines
            if not any(taken and fill for taken, fill in zip(line, fills, strict=True))
        )
        line = next(free, None)
        if line is None:
            line = [None] * len(table.columns)
            lines.append(line)
        line[:] = [experiment if fill else taken for taken, fill in zip(line, fills, strict=True)]
    return [tuple(line) for line in lines] or [(None,) * len(table.columns)]


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
