"""Result tables as LaTeX (booktabs), fingerprints as comments beside the rows.

A table of few columns is a `table`, as wide as a column of text. A wider one is a `table*` across
both columns, its metrics in parts below each other, as papers print them; no part is wider than
the page, for what would be is made smaller.
"""

from collections.abc import Sequence
from textwrap import wrap

from pipeline.tables.cells import Cell, Heading, Line, ResultTable
from pipeline.tables.notes import PLUS_MINUS, mark, notes, seed_count
from pipeline.tables.parts import Part, divide
from pipeline.tables.render import (
    MISSING,
    difference,
    fingerprints,
    headings_text,
    label,
    measured,
    missing_commands,
    papers_number,
)

PACKAGES = r"\usepackage{booktabs,graphicx}"
"""What a document must load."""
ONE_COLUMN, TWO_COLUMNS, GAP = 56, 125, 2
"""Letters of footnotes' size that fit, about, into one and both columns of a paper, and of them the
gap between two columns of a table."""
HEADER_LETTERS = 11
"""In a line of a header, for each column below it."""

_SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"$\sim$", "^": r"\^{}",
    "|": "$|$", "<": "$<$", ">": "$>$", PLUS_MINUS: r"$\pm$",
}  # fmt: skip


def latex(tables: Sequence[ResultTable]) -> str:
    """Return the tables as LaTeX `table` or `table*` environments; see `PACKAGES`."""
    parts = [_table(table) for table in tables]
    parts += [f"% missing {name}: {command}" for name, command in missing_commands(tables).items()]
    return "\n".join(parts) + "\n"


def tex(text: str) -> str:
    """Escape a text for LaTeX."""
    return "".join(_SPECIAL.get(character, character) for character in text)


def _table(table: ResultTable) -> str:
    first = max(len(label(line)) for line in table.lines) if table.lines else 6
    given = [max(map(len, (name, *(line.given[i] for line in table.lines)))) + 2
             for i, name in enumerate(table.given)]  # fmt: skip
    widths = [_width(table, place) for place in range(len(table.headings))]
    beside = first + sum(given)
    fits = beside + sum(widths) <= ONE_COLUMN
    parts = divide(table, widths, (ONE_COLUMN if fits else TWO_COLUMNS) - beside)
    kind = "table" if fits else "table*"
    scale = r" \textbf{Reduced scale.}" if table.reduced else ""
    lines = [
        f"% needs {PACKAGES}",
        rf"\begin{{{kind}}}[tp]",
        r"\centering",
        rf"\caption{{{tex(table.title)}.{scale} {tex(table.caption)}}}",
        r"\footnotesize",
        r"\setlength{\tabcolsep}{4pt}",
        *(line for place, part in enumerate(parts) for line in _part(table, part, place)),
        *_below(table),
        rf"\end{{{kind}}}",
    ]
    return "\n".join(lines)


def _below(table: ResultTable) -> list[str]:
    """Return what stands under a table, small and as wide as it."""
    texts = [
        *(rf"\textbf{{{tex(warning.replace('`', ''))}}}" for warning in table.warnings),
        *(tex(note.replace("`", "")) for note in notes(table)),
    ]
    begin = [r"\par\smallskip", r"\begin{minipage}{\linewidth}", r"\scriptsize"]
    return [*begin, *texts, r"\end{minipage}"] if texts else []


def _width(table: ResultTable, place: int) -> float:
    """Return about how many letters wide a column group is, gaps between columns included."""
    heading = table.headings[place]
    forms = {"paper": papers_number, "ours": _shown, "delta": difference}
    columns = 0
    for subhead in heading.subheads:
        texts = [forms[subhead](line.cells[place]) for line in table.lines]
        columns += max(map(len, (subhead, *texts))) + GAP
    return max(columns, *(len(line) + GAP for line in _name(heading)))


def _shown(cell: Cell) -> str:
    return measured(cell) + mark(cell) + (f" ({seed_count(cell)})" if seed_count(cell) else "")


def _name(heading: Heading) -> list[str]:
    """Return the lines of a column group's header, short where the group is narrow."""
    return wrap(headings_text(heading), HEADER_LETTERS * len(heading.subheads))


def _part(table: ResultTable, part: Part, place: int) -> list[str]:
    """Return a part as a tabular, no wider than the text."""
    widths = [len(table.headings[column].subheads) for column in part.columns]
    given = (1 + len(table.given)) * "l"
    title = rf"\par\smallskip\textbf{{({chr(ord('a') + place)}) {tex(part.title)}}}\par\smallskip"
    return [
        *([title] if part.title else []),
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{{given}{'r' * sum(widths)}}}",
        r"\toprule",
        *_header(table, part, widths),
        r"\midrule",
        *(_row(table, part, line) for line in table.lines),
        r"\bottomrule",
        r"\end{tabular}%",
        "}",
    ]


def _header(table: ResultTable, part: Part, widths: Sequence[int]) -> list[str]:
    first = ["", *("" for _ in table.given)]
    second = ["Method", *(tex(name) for name in table.given)]
    rules = []
    column = len(first) + 1
    for place, width in zip(part.columns, widths, strict=True):
        heading = table.headings[place]
        lines = [tex(line) for line in _name(heading)]
        # the end of a line takes an argument, as that of a row does
        name = r"\\{}".join(lines)
        name = rf"\shortstack{{{name}}}" if len(lines) > 1 else name
        first.append(rf"\multicolumn{{{width}}}{{c}}{{{name}}}")
        names = {"delta": r"$\Delta$"}
        second += [names.get(subhead, subhead) for subhead in heading.subheads]
        rules.append(rf"\cmidrule(lr){{{column}-{column + width - 1}}}")
        column += width
    return [" & ".join(first) + r" \\", "".join(rules), " & ".join(second) + r" \\"]


def _row(table: ResultTable, part: Part, line: Line) -> str:
    name = tex(label(line))
    # the end of the row before takes an argument: [cls] would be it
    cells = ["{}" + name if name[:1] in "[*" else name, *(tex(text) for text in line.given)]
    prints = []
    for place in part.columns:
        heading, cell = table.headings[place], line.cells[place]
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
