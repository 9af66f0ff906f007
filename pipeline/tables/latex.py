"""Result tables as LaTeX (booktabs), fingerprints as comments beside the rows."""

from collections.abc import Sequence

from pipeline.tables.layout import Cell, Line, ResultTable
from pipeline.tables.render import (
    label,
    mark,
    missing_commands,
    notes,
    number,
    ours_header,
    signed,
)

_SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"$\sim$", "^": r"\^{}",
}  # fmt: skip


def latex(tables: Sequence[ResultTable]) -> str:
    """Return the tables as LaTeX `table` environments; the document needs booktabs."""
    parts = [_table(table) for table in tables]
    parts += [f"% missing {name}: {command}" for name, command in missing_commands(tables).items()]
    return "\n".join(parts) + "\n"


def tex(text: str) -> str:
    """Escape a text for LaTeX."""
    return "".join(_SPECIAL.get(character, character) for character in text)


def _table(table: ResultTable) -> str:
    text_columns = 1 + len(table.given)
    widths = [3 if heading.paper_table else 1 for heading in table.headings]
    scale = r" \textbf{Reduced scale.}" if table.reduced else ""
    lines = [
        "% needs \\usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{tex(table.title)}.{scale} {tex(table.caption)}}}",
        rf"\begin{{tabular}}{{{'l' * text_columns}{'r' * sum(widths)}}}",
        r"\toprule",
        *_header(table, widths),
        r"\midrule",
        *(_row(table, line) for line in table.lines),
        r"\bottomrule",
        r"\end{tabular}",
        *(rf"\par\footnotesize {tex(note.replace('`', ''))}" for note in notes(table)),
        r"\end{table}",
    ]
    return "\n".join(lines)


def _header(table: ResultTable, widths: Sequence[int]) -> list[str]:
    first = ["", *("" for _ in table.given)]
    second = ["Method", *(tex(name) for name in table.given)]
    rules = []
    column = len(first) + 1
    for heading, width in zip(table.headings, widths, strict=True):
        unit = f" [{heading.metric.unit}]" if heading.metric.unit else ""
        name = tex(f"{heading.group} {heading.header}".strip() + unit)
        first.append(rf"\multicolumn{{{width}}}{{c}}{{{name}}}")
        ours_text = tex(ours_header(table))
        second += ["paper", ours_text, r"$\Delta$"] if heading.paper_table else [ours_text]
        rules.append(rf"\cmidrule(lr){{{column}-{column + width - 1}}}")
        column += width
    return [" & ".join(first) + r" \\", "".join(rules), " & ".join(second) + r" \\"]


def _row(table: ResultTable, line: Line) -> str:
    cells = [tex(label(line)), *(tex(value) for value in line.given)]
    prints = []
    for heading, cell in zip(table.headings, line.cells, strict=True):
        decimals = cell.metric.decimals
        if heading.paper_table:
            cells.append(_minus(number(cell.paper, decimals)))
        cells.append(_ours(cell))
        if heading.paper_table:
            cells.append(_minus(signed(cell.delta, decimals)))
        if cell.result and cell.result.fingerprint:
            prints.append(f"{cell.result.stage} {cell.result.short_fingerprint}")
    comment = f"  % {', '.join(dict.fromkeys(prints))}" if prints else ""
    return " & ".join(cells) + r" \\" + comment


def _ours(cell: Cell) -> str:
    if cell.status == "missing":
        return r"\emph{missing}"
    marks = mark(cell)
    raised = rf"\textsuperscript{{{tex(marks)}}}" if marks else ""
    return _minus(number(cell.ours, cell.metric.decimals)) + raised


def _minus(text: str) -> str:
    if text == "-":
        return "--"
    return f"${text}$" if text[0] in "+-" else text
