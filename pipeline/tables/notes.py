"""What cells carry beside their numbers, marks and counts of seeds, and what explains them."""

from pipeline.tables import floor
from pipeline.tables.cells import Cell, ResultTable
from pipeline.tables.paper_data import data_notes
from pipeline.tables.uncertainty import sampling_notes

PLUS_MINUS = "\N{PLUS-MINUS SIGN}"
REDUCED_NOTE = (
    "r: reduced scale. Our number comes from a smaller model, less data and a shorter training "
    "than the paper's and is not a reproduction of it; compare our rows with each other."
)
VOUCHED_NOTE = (
    "v: vouched for. Made with earlier code; the current code was shown to compute the same: "
    "`asl-pipe trace` says by whom and how."
)
STALE_NOTE = "*: older than params.yaml or its inputs; `dvc repro` brings it up to date."
UNRECORDED_NOTE = "!: not recorded in dvc.lock; `dvc repro` records it."
DIFFERING_NOTE = (
    "?: dvc.lock does not stand behind this number; a warning names its file and what to do."
)
SEEDS_NOTE = (
    f"a {PLUS_MINUS} b (n = k): mean and sample standard deviation over k pre-training seeds, "
    "everything else equal; the delta is the mean's."
)
UNDEFINED_NOTE = "-: a run has ended without this number, for its data do not give it."
PARTIAL_NOTE = "n = k of m: results of the other seeds are missing."
QUOTED_NOTE = "Rows marked (quoted): the paper takes the numbers from the cited work."

_EXPLAINED = (
    ("r", REDUCED_NOTE), ("u", floor.NOTE), ("v", VOUCHED_NOTE), ("*", STALE_NOTE),
    ("!", UNRECORDED_NOTE), ("?", DIFFERING_NOTE), ("n", SEEDS_NOTE), ("of", PARTIAL_NOTE),
)  # fmt: skip


def seed_count(cell: Cell) -> str:
    """Return how many of the row's seeds our number comes from: `n = 2`, `n = 1 of 2`."""
    if cell.status != "result" or cell.replicates == 1 or cell.metric.exact:
        return ""
    found, asked = len(cell.measured), len(cell.runs)
    return f"n = {found}" if found == asked else f"n = {found} of {asked}"


def mark(cell: Cell) -> str:
    """Return what a number's own cell must say about it: r, u, v, *, !, ?."""
    states = (("outdated", "*"), ("unrecorded", "!"))
    signs = "".join(sign for state, sign in states if state in cell.states)
    worth = "r" * cell.reduced + "u" * floor.is_marked(cell)
    return worth + "v" * cell.vouched + signs + "?" * cell.differing


def notes(table: ResultTable) -> list[str]:
    """Return the lines that explain a table: its marks and seeds, the paper's numbers, its runs."""
    marks = "".join(mark(cell) + seed_count(cell) for _, _, cell in table.cells())
    found = [note for sign, note in _EXPLAINED if sign in marks]
    if any(any(cell.undefined) for _, _, cell in table.cells()):
        found.append(UNDEFINED_NOTE)
    if any(line.quoted for line in table.lines):
        found.append(QUOTED_NOTE)
    found += [*floor.floor_notes(table), *sampling_notes(table)]
    return [*found, *_sources(table), *data_notes(table), *table.remarks]


def _sources(table: ResultTable) -> list[str]:
    """Return one line that says where the paper's numbers are from."""
    sources: dict[str, list[str]] = {}
    for heading in table.headings:
        if heading.paper_table:
            source = f"{heading.paper_table} ({heading.paper_data})"
            sources.setdefault(source, []).append(heading.name)
    parts = (f"{', '.join(names)} from {source}" for source, names in sources.items())
    return [f"The paper's numbers: {'; '.join(parts)}."] if sources else []
