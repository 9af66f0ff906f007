"""A table of the paper laid out whole, our runs at its scale in its rows."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pipeline.tables.cells import Cell, Heading, Line, ResultTable
from pipeline.tables.collect import Suite
from pipeline.tables.cost import TRAIN, cost_cell, cost_headings
from pipeline.tables.filling import remarks, result_cell, warnings
from pipeline.tables.floor import METHOD as FLOOR
from pipeline.tables.floor import floor_warnings
from pipeline.tables.paper import FLOPS, Column, Paper, Table
from pipeline.tables.paper_data import with_data, with_deltas
from pipeline.tables.replicates import Replicates


@dataclass(frozen=True)
class _Row:
    """What the paper says in a row, and who fills it."""

    name: str
    given: tuple[str, ...]
    source: Literal["run", "quoted", "own"]
    values: tuple[float | None, ...]
    flops: str | None
    filling: tuple[Replicates, ...]
    instead: Mapping[str, str] = field(default_factory=dict)


def paper_table(
    suite: Suite, paper: Paper, table: Table, groups: Sequence[Replicates]
) -> ResultTable:
    """Return a table of the paper with all its rows, and behind them those that only we run."""
    costs = cost_headings(suite, paper, table)
    # where our FLOPs are counted, the paper's stand beside them and not among what is given
    kept = [i for i, name in enumerate(table.given) if name != FLOPS or TRAIN not in costs]
    lines, filled = [], []
    for row in [*_floors(suite, paper, table, groups), *_rows(suite, paper, table, groups)]:
        for columns in _share_lines(suite, table, row.filling):
            present = list({group.label: group for group in columns if group}.values())
            first = present[0] if present else None
            cells = [
                cost_cell(suite, paper, first, name, row.flops if name == TRAIN else None)
                for name in costs
            ]
            cells += [
                _compared_cell(suite, paper, table, column, row, value, group)
                for column, value, group in zip(table.columns, row.values, columns, strict=True)
            ]
            keys = tuple(key for group in present for key in group.keys)
            given = tuple(row.given[i] for i in kept)
            floor = first is not None and first.recipe.method == FLOOR
            lines.append(Line(row.name, keys, given, row.source, tuple(cells), untrained=floor))
            filled += [(row.name, group) for group in present]
    headings = with_deltas(
        (*costs.values(), *(_heading(paper, table, column) for column in table.columns)), lines
    )
    return ResultTable(
        title=f"{table.number}: {table.title}",
        caption=f"Pre-trained on: {table.pretrained_on}. {table.model}, epochs: {table.epochs}.",
        reduced=suite.reduced,
        given=tuple(table.given[i] for i in kept),
        headings=headings,
        lines=tuple(lines),
        warnings=(
            *floor_warnings(headings, lines),
            *warnings(suite, [group for _, group in filled]),
        ),
        remarks=remarks(suite, paper, filled),
    )


def _rows(suite: Suite, paper: Paper, table: Table, groups: Sequence[Replicates]) -> list[_Row]:
    rows = [
        _Row(
            row.name if row.cite is None else f"{row.name} [{row.cite}]",
            row.given,
            row.source,
            row.values,
            table.flops(index),
            tuple(group for group in groups if _place(suite, table, group) == index),
            row.instead,
        )
        for index, row in enumerate(table.rows)
    ]
    own = (group for group in _own(suite, paper, table, groups) if group.recipe.method != FLOOR)
    return rows + [_own_row(table, group.label, (group,)) for group in own]


def _floors(suite: Suite, paper: Paper, table: Table, groups: Sequence[Replicates]) -> list[_Row]:
    """Return a row for each initialisation of a random encoder; in its columns, its datasets."""
    named: dict[str, list[Replicates]] = {}
    for group in _own(suite, paper, table, groups):
        if group.recipe.method == FLOOR:
            named.setdefault(group.row or paper.method_label(group.recipe), []).append(group)
    return [_own_row(table, name, tuple(found)) for name, found in named.items()]


def _own_row(table: Table, name: str, filling: tuple[Replicates, ...]) -> _Row:
    given, values = ("-",) * len(table.given), (None,) * len(table.columns)
    return _Row(name, given, "own", values, None, filling)


def _own(
    suite: Suite, paper: Paper, table: Table, groups: Sequence[Replicates]
) -> list[Replicates]:
    """Return what fills no row of the paper and has something to show in this table."""
    tables = [paper.table(reference) for reference in suite.tables]
    stages = {paper.metrics[column.metric].stage for column in table.columns}
    return [
        group
        for group in groups
        if all(_place(suite, other, group) is None for other in tables)
        and any((stage, key) in suite.results for stage in stages for key in group.keys)
    ]


def _compared_cell(
    suite: Suite,
    paper: Paper,
    table: Table,
    column: Column,
    row: _Row,
    value: float | None,
    group: Replicates | None,
) -> Cell:
    name = row.instead.get(column.metric, column.metric)
    cell = result_cell(suite, paper, group, name, value)
    return cell if group is None else with_data(cell, suite, paper, table, column, group.recipe)


def _place(suite: Suite, table: Table, group: Replicates) -> int | None:
    return table.row_of(suite.on_images(group.recipe), group.row, full_scale=True)


def _share_lines(
    suite: Suite, table: Table, groups: Sequence[Replicates]
) -> list[tuple[Replicates | None, ...]]:
    """Distribute what fills a row over lines, one group of replicates a column and line.

    In a table with parts (CIFAR-10, CIFAR-100) an experiment fills the part that is named after
    its data, so the two share a line; otherwise each has its own.
    """
    lines: list[dict[int, Replicates]] = []
    for group in groups:
        filled = {
            index: group
            for index, column in enumerate(table.columns)
            if column.part in ("", suite.images_of(group.recipe.dataset))
        }
        line = next((line for line in lines if not line.keys() & filled.keys()), None)
        if line is None:
            lines.append(filled)
        else:
            line.update(filled)
    return [tuple(map(line.get, range(len(table.columns)))) for line in lines or [{}]]


def contested(suite: Suite, table: Table, groups: Sequence[Replicates]) -> Iterator[str]:
    """Yield a line for each row of a table of the paper that takes several lines of ours."""
    for index, row in enumerate(table.rows):
        filling = [group for group in groups if _place(suite, table, group) == index]
        lines = _share_lines(suite, table, filling)
        if len(lines) > 1:
            first, second = (next(g for g in line if g is not None).keys[0] for line in lines[:2])
            yield (
                f"{table.number}, row {row.name}: experiments {first} and {second} both fill it; "
                "give one of them a `row` of its own, or leave it out"
            )


def _heading(paper: Paper, table: Table, column: Column) -> Heading:
    return Heading(
        metric=paper.metrics[column.metric],
        header=column.header,
        group=column.group,
        paper_table=table.number,
        paper_data=column.data,
    )
