"""Is a number better than nothing? Each cell beside a random encoder's.

The floor of a cell is what the method `untrained` has with an encoder of the same size under the
same settings of the evaluation, data included, whatever the seeds. A row has learned something in a
column where it exceeds the floor by two standard deviations of the difference: those of the two
numbers, squared and added. A number's deviation is that over its seeds where it has several, and
its standard error over the choice of test images where it is a single run's. AP and mIoU of single
runs have neither; there a number must be above its floor.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from asl_core.recipes.imported import encoder_differences
from pipeline.tables.cells import Cell, Heading, Line, ResultTable
from pipeline.tables.collect import StageResult, Suite
from pipeline.tables.replicates import without_seed

METHOD = "untrained"
DEVIATIONS = 2

NOTE = (
    "u: does not exceed a random encoder under the same evaluation by two standard deviations of "
    "the difference: over seeds, and for a single run over the choice of test images."
)
ALL_LEARNED = "Every trained row exceeds the untrained one in at least one column."


def floor_runs(
    suite: Suite, recipe: Any, runs: Sequence[StageResult]
) -> list[tuple[StageResult, ...]]:
    """Return the runs that a row's runs of one evaluation are measured against.

    Args:
        suite: Its results.
        recipe: The row's pre-training.
        runs: The row's runs of an evaluation, alike but for their seeds.

    Returns:
        For each initialisation of a random encoder its seeds' runs; nothing for such a row itself.
    """
    if not runs or recipe.method == METHOD:
        return []
    evaluation = suite.on_images(without_seed(runs[0].recipe))
    found: dict[str, dict[int, StageResult]] = {}  # two experiments of one seed are one encoder
    for experiment in suite.experiments:
        other = experiment.recipe
        if other.method != METHOD or encoder_differences(other.model, recipe.model):
            continue
        run = suite.results.get((runs[0].stage, experiment.key))
        if run is not None and suite.on_images(without_seed(run.recipe)) == evaluation:
            found.setdefault(other.initialisation, {}).setdefault(other.seed, run)
    return [tuple(seeds.values()) for seeds in found.values()]


def highest(cells: Sequence[Cell]) -> Cell | None:
    """Return the cell with the highest number; one without a number if none has any."""
    return max(cells, key=lambda cell: -math.inf if cell.ours is None else cell.ours, default=None)


def exceeds_floor(cell: Cell) -> bool | None:
    """Return whether a number is above its floor by two deviations; None without one of the two."""
    if cell.ours is None or cell.floor is None or cell.floor.ours is None:
        return None
    difference = cell.ours - cell.floor.ours
    deviations = (cell.deviation, cell.floor.deviation)
    known = [each for each in deviations if each is not None]
    needed = DEVIATIONS * math.hypot(*known) if len(known) == len(deviations) else 0.0
    return difference > 0 and difference >= needed


def is_marked(cell: Cell) -> bool:
    """Return whether a number is not above its floor."""
    return exceeds_floor(cell) is False


def floor_warnings(headings: Sequence[Heading], lines: Sequence[Line]) -> tuple[str, ...]:
    """Return the sentence that says which rows have learned nothing, if any."""
    judged = [(name, _judgements(headings, line)) for name, line in _named(lines)]
    nothing = [(name, found) for name, found in judged if found and not any(found.values())]
    if not nothing:
        return ()
    rows = "; ".join(name for name, _ in nothing)
    columns = dict.fromkeys(column for _, found in nothing for column in found)
    return (f"Learned nothing: {rows}. In none of {', '.join(columns)} above untrained.",)


def floor_notes(table: ResultTable) -> list[str]:
    """Return what a reader must know of a table's floor beside its mark."""
    judged = [found for line in table.lines if (found := _judgements(table.headings, line))]
    notes = []
    if judged and all(any(found.values()) for found in judged):
        notes.append(ALL_LEARNED)
    if plain := _columns(table, _without_deviation):
        notes.append(f"No deviation is known of {plain}: marked is what is not above untrained.")
    if lacking := _columns(table, lambda cell: cell.floor is None):
        notes.append(f"No untrained row: nothing says what a random encoder has in {lacking}.")
    if lacking := _columns(table, lambda cell: cell.floor is not None and cell.floor.ours is None):
        notes.append(f"The untrained row has no result yet in {lacking}.")
    return notes


def _judgements(headings: Sequence[Heading], line: Line) -> Mapping[str, bool]:
    """Return column -> whether the row exceeds its floor there."""
    pairs = zip(headings, line.cells, strict=True)
    found = {heading.name: exceeds_floor(cell) for heading, cell in pairs}
    return {name: above for name, above in found.items() if above is not None}


def _without_deviation(cell: Cell) -> bool:
    judged = cell.floor is not None and exceeds_floor(cell) is not None
    return judged and None in (cell.deviation, cell.floor and cell.floor.deviation)


def _columns(table: ResultTable, holds: Callable[[Cell], bool]) -> str:
    """Return the columns in which something holds of cells; with rows where not of all of them."""
    names = []
    for index, heading in enumerate(table.headings):
        asked = [(name, line.cells[index]) for name, line in _named(table.lines)]
        asked = [(name, cell) for name, cell in asked if cell.runs and cell.metric.more_is_better]
        rows = [name for name, cell in asked if holds(cell)]
        if rows:
            names.append(heading.name + (f" ({'; '.join(rows)})" if len(rows) < len(asked) else ""))
    return ", ".join(names)


def _named(lines: Sequence[Line]) -> Iterator[tuple[str, Line]]:
    """Yield the rows that are not the floor itself, with names that no two of them have."""
    labels = [line.label for line in lines]
    for line in lines:
        if not line.untrained and line.keys:
            alike = labels.count(line.label) > 1
            yield f"{line.label} [{line.keys[0]}]" if alike else line.label, line
