"""Results beside the paper's numbers: which rows, which columns, which cell.

At the paper's scale each table that a suite names is laid out whole, the paper's rows in the
paper's order. A reduced suite gets one table of its own: its experiments as rows, those that
differ in the seed alone as one, every metric that it measures as a column, and the paper's number
from the first named table that has one.
"""

from collections.abc import Sequence

from asl_core.wording import counted
from pipeline.config.suggest import folded
from pipeline.tables.cells import Cell, Heading, Line, ResultTable
from pipeline.tables.collect import Suite
from pipeline.tables.cost import TRAIN, cost_cell, cost_headings
from pipeline.tables.filling import remarks, result_cell, warnings
from pipeline.tables.floor import METHOD as FLOOR
from pipeline.tables.floor import floor_warnings
from pipeline.tables.paper import Paper, Table
from pipeline.tables.paper_data import with_data, with_deltas
from pipeline.tables.paper_scale import contested, paper_table
from pipeline.tables.replicates import Replicates, find_replicates


def lay_out(suite: Suite, paper: Paper) -> list[ResultTable]:
    """Return the tables of a suite.

    Raises:
        UserError: params.yaml names a table that the paper does not have.
    """
    tables = [paper.table(reference) for reference in suite.tables]
    groups = find_replicates(suite, paper)
    if suite.reduced or not tables:
        return [_suite_table(suite, paper, tables, groups)]
    return [paper_table(suite, paper, table, groups) for table in tables]


def all_tables(suite: Suite, paper: Paper) -> list[ResultTable]:
    """Return the tables of a suite and those of its analyses.

    Raises:
        UserError: See `lay_out`.
    """
    analyses = filter(None, (similarity_table(suite, paper), contrastive_table(suite, paper)))
    return [*lay_out(suite, paper), *analyses]


def contested_rows(suite: Suite, paper: Paper) -> list[str]:
    """Return a line for each row of the paper that several experiments of a suite would fill."""
    if suite.reduced:
        return []
    groups = find_replicates(suite, paper)
    tables = map(paper.table, suite.tables)
    return [line for table in tables for line in contested(suite, table, groups)]


def suite_table(suite: Suite, paper: Paper, name: str) -> str | None:
    """Return which table of a suite a name means: `table7`, `Table 7`, or its title; None: none."""
    for reference in suite.tables:
        table = paper.table(reference)
        known = (reference, table.number, table.title, f"{table.number}: {table.title}")
        if folded(name) in map(folded, known):
            return reference
    return None


def similarity_table(suite: Suite, paper: Paper) -> ResultTable | None:
    """Return what Figure 1 measures and its companions; None without any token analysis."""
    return _own_table(suite, paper, paper.similarity, "Token similarity and its companions")


def contrastive_table(suite: Suite, paper: Paper) -> ResultTable | None:
    """Return how far Eq. 8 follows the squared error; None without any such analysis."""
    return _own_table(suite, paper, paper.contrastive, "Squared error and contrastive loss (Eq. 8)")


def _own_table(suite: Suite, paper: Paper, names: Sequence[str], title: str) -> ResultTable | None:
    """Return a table of metrics that the paper does not print, without columns of dashes.

    None where no experiment has the first metric, which the others explain.
    """
    shown = [
        name for name in names if any(name in result.metrics for result in suite.results.values())
    ]
    if names[0] not in shown:
        return None
    meanings = (f"{paper.metrics[name].header}: {paper.metrics[name].meaning}" for name in shown)
    lines = (
        _own_line(group, [result_cell(suite, paper, group, name, None) for name in shown])
        for group in find_replicates(suite, paper)
        if any((paper.metrics[names[0]].stage, key) in suite.results for key in group.keys)
    )
    return ResultTable(
        title=title,
        caption="; ".join(meanings) + ".",
        reduced=suite.reduced,
        given=(),
        headings=tuple(Heading(paper.metrics[name], paper.metrics[name].header) for name in shown),
        lines=tuple(lines),
    )


def _own_line(group: Replicates, cells: Sequence[Cell]) -> Line:
    floor = group.recipe.method == FLOOR
    return Line(group.label, group.keys, (), "own", tuple(cells), untrained=floor)


def _suite_table(
    suite: Suite, paper: Paper, tables: Sequence[Table], groups: Sequence[Replicates]
) -> ResultTable:
    asked = {stage for stage, _ in suite.results}
    found = {name for run in suite.results.values() for name in run.metrics}
    names = [
        name
        for name in paper.headline
        if paper.metrics[name].stage in asked
        and (name in found or not paper.metrics[name].optional)
    ]
    names += _without_a_column(suite, paper, names)
    compared = {name: _compared_tables(name, suite, tables, groups) for name in names}
    priced = next((t for t in tables if any(_paper_flops(t, suite, g) for g in groups)), None)
    costs = cost_headings(suite, paper, priced)
    lines = []
    for group in groups:
        printed = None if priced is None else _paper_flops(priced, suite, group)
        cells = [
            cost_cell(suite, paper, group, name, printed if name == TRAIN else None)
            for name in costs
        ]
        cells += [
            _compared_cell(
                suite,
                paper,
                group,
                name,
                _measured(tables, name, suite, group),
                compared[name],
            )
            for name in names
        ]
        lines.append(_own_line(group, cells))
    headings = with_deltas(
        (*costs.values(), *(_suite_heading(paper, name, compared[name]) for name in names)), lines
    )
    rows = f"{counted(len(lines), 'row')}, " if len(lines) < len(suite.experiments) else ""
    return ResultTable(
        title=suite.title,
        caption=f"{rows}{counted(len(suite.experiments), 'experiment')} of the suite {suite.name}.",
        reduced=suite.reduced,
        given=(),
        headings=headings,
        lines=tuple(lines),
        warnings=(*floor_warnings(headings, lines), *warnings(suite, groups)),
        remarks=remarks(suite, paper, [(group.label, group) for group in groups]),
    )


def _without_a_column(suite: Suite, paper: Paper, names: Sequence[str]) -> list[str]:
    """Return what rows have in the place of a metric that this suite does not measure at all."""
    rows = (row for table in paper.tables.values() for row in table.rows)
    others = {other for row in rows for name, other in row.instead.items() if name not in names}
    measured = {name for run in suite.results.values() for name in run.metrics}
    return sorted(others & measured)


def _compared_tables(
    name: str, suite: Suite, tables: Sequence[Table], groups: Sequence[Replicates]
) -> list[Table]:
    """Return the first table with a number for this metric and one of the rows, and its like.

    Like it are the tables of the same pre-training that measure the metric on the same data, as
    Table 7 and Section 4.6. Numbers of other tables must not stand under each other.
    """
    found: list[Table] = []
    for table in tables:
        if all(_paper_value([table], name, suite, group) is None for group in groups):
            continue
        if not found or _setting(table, name) == _setting(found[0], name):
            found.append(table)
    return found


def _setting(table: Table, name: str) -> tuple[object, str]:
    column = _column_of(table, name)
    return table.comparable, "" if column is None else table.columns[column].data


def _paper_value(
    tables: Sequence[Table], name: str, suite: Suite, group: Replicates
) -> float | None:
    for table in tables:
        column, row = _column_of(table, name), _place(table, suite, group)
        if column is not None and row is not None:
            value = table.rows[row].values[column]
            if value is not None:
                return value
    return None


def _compared_cell(
    suite: Suite,
    paper: Paper,
    group: Replicates,
    name: str,
    measured: str,
    tables: Sequence[Table],
) -> Cell:
    """Return a row's number under a column beside that of the first of some tables that has one."""
    cell = result_cell(suite, paper, group, measured, _paper_value(tables, name, suite, group))
    column = _column_of(tables[0], name) if tables else None
    if column is None:
        return cell
    return with_data(cell, suite, paper, tables[0], tables[0].columns[column], group.recipe)


def _measured(tables: Sequence[Table], name: str, suite: Suite, group: Replicates) -> str:
    """Return the metric that a row has in the column of another, as the paper's row has."""
    rows = ((table, _place(table, suite, group)) for table in tables)
    own = (table.rows[row].instead.get(name, name) for table, row in rows if row is not None)
    return next((metric for metric in own if metric != name), name)


def _paper_flops(table: Table, suite: Suite, group: Replicates) -> str | None:
    row = _place(table, suite, group)
    return None if row is None else table.flops(row)


def _place(table: Table, suite: Suite, group: Replicates) -> int | None:
    """Return the index of the paper's row that a row of the suite compares with."""
    recipe = suite.on_images(group.recipe)
    return table.row_of(recipe, group.row, full_scale=not suite.reduced)


def _column_of(table: Table, name: str) -> int | None:
    names = [column.metric for column in table.columns]
    return names.index(name) if name in names else None


def _suite_heading(paper: Paper, name: str, tables: Sequence[Table]) -> Heading:
    metric = paper.metrics[name]
    column = _column_of(tables[0], name) if tables else None
    if column is None:
        return Heading(metric, metric.header)
    numbers = ", ".join(table.number for table in tables)
    data = tables[0].columns[column].data
    return Heading(metric, metric.header, paper_table=numbers, paper_data=data)
