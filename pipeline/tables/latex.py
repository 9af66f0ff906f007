"""Result tables as LaTeX (booktabs), fingerprints as comments beside the rows."""

from collections.abc import Sequence

from pipeline.tables.cells import Cell, Line, ResultTable
from pipeline.tables.notes import PLUS_MINUS, mark, notes, seed_count
from pipeline.tables.render import (
    MISSING,
    difference,
    fingerprints,
    label,
    measured,
    missing_commands,
    ours_header,
    papers_number,
)

_SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"$\sim$", "^": r"\^{}",
    "|": "$|$", "<": "$<$", ">": "$>$", PLUS_MINUS: r"$\pm$",
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
    widths = [len(heading.subheads) for heading in table.headings]
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
        *(rf"\par\textbf{{{tex(warning.replace('`', ''))}}}" for warning in table.warnings),
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
        name = tex(heading.name + unit)
        first.append(rf"\multicolumn{{{width}}}{{c}}{{{name}}}")
        names = {"ours": tex(ours_header(table)), "delta": r"$\Delta$"}
        second += [names.get(subhead, subhead) for subhead in heading.subheads]
        rules.append(rf"\cmidrule(lr){{{column}-{column + width - 1}}}")
        column += width
    return [" & ".join(first) + r" \\", "".join(rules), " & ".join(second) + r" \\"]


def _row(table: ResultTable, line: Line) -> str:
    name = tex(label(line))
    # the end of the row before takes an argument: [cls] would be it
    cells = ["{}" + name if name[:1] in "[*" else name, *(tex(text) for text in line.given)]
    prints = []
    for heading, cell in zip(table.headings, line.cells, strict=True):
        forms = {"paper": _paper, "ours": _ours, "delta": _delta}
        cells += [forms[subhead](cell) for subhead in heading.subheads]
        prints += [f"{cell.metric.stage} {short}" for short in fingerprints(cell)]
    comment = f"  % {', '.join(dict.fromkeys(prints))}" if prints else ""
    return " & ".join(cells) + r" \\" + comment


def _paper(cell: Cell) -> str:
    return _minus(tex(papers_number(cell)))


def _ours(cell: Cell) -> str:
    if cell.status == "missing":
        return rf"\emph{{{MISSING}}}"
    seeds = f" ({tex(seed_count(cell))})" if seed_count(cell) else ""
    raised = rf"\textsuperscript{{{tex(mark(cell))}}}" if mark(cell) else ""
    mean, *spread = measured(cell).split(PLUS_MINUS)
    number = " ".join([_minus(mean.strip()), *(rf"$\pm$ {part.strip()}" for part in spread)])
    return number + seeds + raised


def _delta(cell: Cell) -> str:
    return _minus(difference(cell))


def _minus(text: str) -> str:
    if text == "-":
        return "--"
    return f"${text}$" if text[0] in "+-" else text
