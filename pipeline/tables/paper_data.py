"""Whether our numbers come from the data that the paper's come from: else there is no delta.

A dataset is the paper's where a suite calls it by the name that paper.yaml has for it, and the run
was measured on nearly as many test images as the official split has: some may be unusable. One with
a tokenizer counts as the one whose images it has.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pipeline.tables.cells import Cell, Heading, Line, ResultTable
from pipeline.tables.collect import StageResult, Suite
from pipeline.tables.paper import Column, Paper, Table

COMPLETE = 0.99
"""Share of the official test images from which on a split is the official one. Of COCO's 5,000, 48
have no object in them."""


def with_data(
    cell: Cell, suite: Suite, paper: Paper, table: Table, column: Column, recipe: Any
) -> Cell:
    """Return a cell that knows on which data the paper's number is another one than ours.

    Args:
        cell: Our number and the paper's.
        suite: Knows whose images a dataset with a tokenizer has.
        paper: The paper's data.
        table: Where the paper's number is from.
        column: Likewise.
        recipe: The row's pre-training.
    """
    if not cell.runs or not isinstance(cell.paper, float):
        return cell
    wanted = paper.data[column.data]
    others = [run for run in cell.runs if suite.images_of(run.recipe.dataset) != wanted.dataset]
    partial = [run for run in cell.counted if _is_partial(run, wanted.test_images)]
    if others:
        text = f"{others[0].recipe.dataset}; the paper: {column.data}"
    elif partial:
        images = partial[0].test_images
        count = "unknown" if images is None else f"{images:,}"
        text = f"{count} test images; the paper: {wanted.test_images:,} of {column.data}"
    elif recipe.method != "imported" and suite.images_of(recipe.dataset) not in table.pretraining:
        text = f"pre-trained on {recipe.dataset}; the paper: {table.pretrained_on}"
    else:
        text = ""
    return replace(cell, other_data=text)


def with_deltas(headings: Sequence[Heading], lines: Sequence[Line]) -> tuple[Heading, ...]:
    """Return the headings of some rows, without a delta where no cell may have one."""
    return tuple(
        replace(heading, delta=_comparable([line.cells[index] for line in lines]))
        for index, heading in enumerate(headings)
    )


def data_notes(table: ResultTable) -> list[str]:
    """Return the line that says where a delta would mean nothing, and why."""
    found = []
    for index, heading in enumerate(table.headings):
        reasons = dict.fromkeys(line.cells[index].other_data for line in table.lines)
        if texts := [text for text in reasons if text]:
            found.append(f"{heading.name} ({', '.join(texts)})")
    return [f"No delta where the data are not the paper's: {', '.join(found)}."] if found else []


def _comparable(cells: Sequence[Cell]) -> bool:
    compared = [cell for cell in cells if cell.runs and isinstance(cell.paper, float)]
    return not compared or any(not cell.other_data for cell in compared)


def _is_partial(run: StageResult, test_images: int) -> bool:
    return not COMPLETE * test_images <= (run.test_images or 0) <= test_images
