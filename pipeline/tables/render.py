"""Result tables as Markdown, as text for a terminal, as LaTeX.

Every format has the columns paper | ours | delta per metric, marks each reduced number in its own
cell, and says for each cell that is missing which command makes it.
"""

from collections.abc import Sequence
from io import StringIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from pipeline import rounding
from pipeline.project import REDUCED
from pipeline.tables.cells import Cell, Heading, Line, ResultTable
from pipeline.tables.notes import PLUS_MINUS, mark, notes, seed_count

DASH = "-"
MISSING = "missing"


def number(value: float | str | None, decimals: int) -> str:
    """Return a value as printed in a table, a dash for none; a text stays as it is."""
    if value is None or isinstance(value, str):
        return value or DASH
    return rounding.fixed(value, decimals)


def signed(value: float | None, decimals: int) -> str:
    """Return a difference with its sign; zero has none."""
    return DASH if value is None else rounding.signed(value, decimals)


def measured(cell: Cell) -> str:
    """Return our number, with its spread over the seeds: `27.41 (plus-minus) 0.35`."""
    if cell.status == "missing":
        return MISSING
    if cell.ours is None:
        return DASH
    mean = number(cell.ours, cell.decimals) + cell.metric.suffix
    if cell.spread is None:
        return mean
    return f"{mean} {PLUS_MINUS} {rounding.fixed(cell.spread, cell.decimals)}"


def ours(cell: Cell) -> str:
    """Return our number with its count and marks, `missing`, or a dash where it is not asked."""
    seeds = f"({seed_count(cell)})" if seed_count(cell) else ""
    return " ".join(part for part in (measured(cell), seeds, mark(cell)) if part)


def papers_number(cell: Cell) -> str:
    """Return the paper's number as the paper prints it."""
    return number(cell.paper, cell.metric.decimals)


def difference(cell: Cell) -> str:
    """Return ours minus the paper's, with its sign."""
    return signed(cell.delta, cell.decimals)


def texts(heading: Heading, cell: Cell) -> list[str]:
    """Return a cell's text under each of its heading's columns."""
    forms = {"paper": papers_number, "ours": ours, "delta": difference}
    return [forms[subhead](cell) for subhead in heading.subheads]


def fingerprints(cell: Cell) -> list[str]:
    """Return, in short, the fingerprint of every run that our number comes from."""
    return [run.short_fingerprint for run in cell.counted if run.fingerprint]


def label(line: Line) -> str:
    """Return a row's name; quoted rows say so."""
    return f"{line.label} (quoted)" if line.quoted else line.label


def headings_text(heading: Heading) -> str:
    """Return the header of a column group: `CIFAR-10 Finetuning [%]`."""
    unit = f" [{heading.metric.unit}]" if heading.metric.unit else ""
    return heading.name + unit


def ours_header(table: ResultTable) -> str:
    """Return the header of our column, with the scale."""
    return "ours (reduced)" if table.reduced else "ours"


def missing_commands(tables: Sequence[ResultTable]) -> dict[str, str]:
    """Return for each cell without a number its command: stage and key -> command."""
    return {
        f"{run.stage}@{run.key}": run.command
        for table in tables
        for _, _, cell in table.cells()
        for run in cell.missing
    }


def markdown(tables: Sequence[ResultTable]) -> str:
    """Return the tables as one Markdown document."""
    parts = []
    for table in tables:
        parts += [f"## {title_of(table)}", table.caption]
        parts += [_markdown_grid(table), *(f"> **{warning}**" for warning in table.warnings)]
        parts += [f"- {_code_marks(note)}" for note in notes(table)]
        if any(cell.runs for _, _, cell in table.cells()):
            parts += ["### Fingerprints", _markdown_fingerprints(table)]
    commands = missing_commands(tables)
    if commands:
        parts.append("### Missing")
        parts += [f"- {name}: `{command}`" for name, command in commands.items()]
    return _join_blocks(parts)


def scale_suffix(table: ResultTable) -> str:
    """Return what a table's title must say about its scale."""
    return REDUCED if table.reduced else ""


def title_of(table: ResultTable) -> str:
    """Return a table's title as it is printed."""
    return f"{table.title}{scale_suffix(table)}"


def _code_marks(note: str) -> str:
    return f"`{note[0]}`{note[1:]}" if note[1:2] == ":" else note


def _join_blocks(parts: Sequence[str]) -> str:
    """Join blocks by blank lines, list items by line ends."""
    text = ""
    for part in parts:
        tight = part.startswith("- ") and text.rpartition("\n")[2].startswith("- ")
        text += ("\n" if tight else "\n\n") + part if text else part
    return text + "\n"


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _markdown_grid(table: ResultTable) -> str:
    header = ["Method", *table.given]
    for heading in table.headings:
        name = headings_text(heading)
        heads = {"paper": f"{name}: paper", "ours": f"{name}: {ours_header(table)}"}
        header += [heads.get(subhead, subhead) for subhead in heading.subheads]
    align = ["---"] * (1 + len(table.given)) + ["---:"] * (len(header) - 1 - len(table.given))
    rows = [_markdown_row(header), _markdown_row(align)]
    for line in table.lines:
        cells = [
            text
            for heading, cell in zip(table.headings, line.cells, strict=True)
            for text in texts(heading, cell)
        ]
        rows.append(_markdown_row([label(line), *line.given, *cells]))
    return "\n".join(rows)


def _markdown_fingerprints(table: ResultTable) -> str:
    header = ["Method", "experiment", *(headings_text(h) for h in table.headings)]
    rows = [_markdown_row(header), _markdown_row(["---"] * len(header))]
    for line in table.lines:
        if line.keys:
            prints = [
                ", ".join(f"`{short}`" for short in fingerprints(cell)) or DASH
                for cell in line.cells
            ]
            rows.append(_markdown_row([line.label, ", ".join(line.keys), *prints]))
    return "\n".join(rows)


def text(tables: Sequence[ResultTable], width: int) -> str:
    """Return the tables for a terminal: methods as rows where that fits, else a block a metric.

    Args:
        tables: Tables of one suite.
        width: Columns of the terminal.
    """
    out = StringIO()
    console = Console(file=out, width=width, force_terminal=False, highlight=False, emoji=False)
    unbounded = console.options.update(max_width=10_000)
    for table in tables:
        wide = _rich_wide(table)
        fits = console.measure(wide, options=unbounded).maximum <= width
        console.print(escape(title_of(table)))
        console.print(escape(table.caption))
        console.print(wide if fits else _rich_long(table))
        for note in (*table.warnings, *notes(table)):
            console.print(escape(note))
        console.print()
    for name, command in missing_commands(tables).items():
        console.print(escape(f"missing {name}: {command}"), soft_wrap=True)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()).rstrip() + "\n"


def _rich_wide(table: ResultTable) -> RichTable:
    """Lay out one column per metric, in it paper, ours and delta as sub-columns."""
    grid = RichTable(box=SIMPLE_HEAD, pad_edge=False)
    for header in ("Method", *table.given):
        grid.add_column(f"\n{escape(header)}", no_wrap=True)
    columns = []
    for index, heading in enumerate(table.headings):
        rows = [texts(heading, line.cells[index]) for line in table.lines]
        widths = [max(map(len, column)) for column in zip(heading.subheads, *rows, strict=True)]
        subhead, *lines = (_justify(row, widths) for row in (heading.subheads, *rows))
        grid.add_column(f"{escape(headings_text(heading))}\n{subhead}", no_wrap=True)
        columns.append(lines)
    for line, *cells in zip(table.lines, *columns, strict=True):
        grid.add_row(*(escape(cell) for cell in (label(line), *line.given, *cells)))
    return grid


def _justify(row: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))


def _rich_long(table: ResultTable) -> RichTable:
    """Lay out one row per metric and method."""
    grid = RichTable(box=SIMPLE_HEAD, pad_edge=False)
    for header in ("Metric", "Method"):
        grid.add_column(header)
    every = {subhead for heading in table.headings for subhead in heading.subheads}
    subheads = [subhead for subhead in ("paper", "ours", "delta") if subhead in every]
    for header in subheads:
        grid.add_column(header, justify="right")
    grid.add_column("fingerprint")
    for index, heading in enumerate(table.headings):
        for row, line in enumerate(table.lines):
            cell = line.cells[index]
            printed = dict(zip(heading.subheads, texts(heading, cell), strict=True))
            grid.add_row(
                escape(headings_text(heading)) if row == 0 else "",
                escape(label(line)),
                *(printed.get(subhead, DASH) for subhead in subheads),
                ", ".join(fingerprints(cell)),
                end_section=row == len(table.lines) - 1,
            )
    return grid
