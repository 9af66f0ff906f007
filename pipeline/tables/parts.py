"""A table with many columns in parts that fit a page: results first, then what goes with them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.stages.table import MEASURED
from pipeline.tables.cells import Heading, ResultTable

RESULTS, COMPANIONS, COSTS = "Results", "Companions", "Costs"

_HEADLINE = {name for stage in MEASURED for name in stage.headline}


@dataclass(frozen=True)
class Part:
    """Some columns of a table, to be printed under the same rows."""

    title: str
    """What they have in common; empty where the table is not divided."""
    columns: tuple[int, ...]
    """Places among the table's headings."""


def divide(table: ResultTable, widths: Sequence[float], room: float) -> list[Part]:
    """Divide a table so that no part is wider than the page.

    A table that fits stays whole and as it is. Otherwise the numbers by which methods are compared
    come first, then what goes with them, then the costs; each of these in as many parts as it
    needs, of about the same width.

    Args:
        table: With headings.
        widths: Of each column group, in any unit.
        room: What the page has for all of them beside the first column, in the same unit.
    """
    everything = tuple(range(len(table.headings)))
    if sum(widths) <= room or len(everything) < 2:
        return [Part("", everything)]
    kinds: dict[str, list[int]] = {RESULTS: [], COMPANIONS: [], COSTS: []}
    for place, heading in enumerate(table.headings):
        kinds[_kind(heading)].append(place)
    return [
        Part(title if len(portions) == 1 else f"{title}, {number} of {len(portions)}", portion)
        for title, columns in kinds.items()
        if columns
        for portions in [list(_portions(columns, widths, room))]
        for number, portion in enumerate(portions, start=1)
    ]


def _kind(heading: Heading) -> str:
    if heading.metric.exact:
        return COSTS
    return RESULTS if heading.metric.name in _HEADLINE or heading.paper_table else COMPANIONS


def _portions(
    columns: Sequence[int], widths: Sequence[float], room: float
) -> Iterator[tuple[int, ...]]:
    """Yield runs of columns that fit, about equally wide; one that never fits stands alone."""
    whole = sum(widths[column] for column in columns)
    least = max(1, -(-int(whole) // max(1, int(room))))
    target = min(room, whole / least + max(widths[column] for column in columns) / 2)
    portion: list[int] = []
    for column in columns:
        if portion and sum(widths[each] for each in portion) + widths[column] > target:
            yield tuple(portion)
            portion = []
        portion.append(column)
    yield tuple(portion)
