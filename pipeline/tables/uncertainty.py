"""How far chance reaches into a number: its standard error over the choice of test images.

Of a share p of n images that are right it is the binomial one, sqrt(p (1 - p) / n); a mean comes
with its own; AP and mIoU are one number of all images together, and n does not give theirs.
"""

import math
from collections.abc import Sequence

from pipeline.rounding import fixed
from pipeline.tables.cells import Cell, Heading, ResultTable
from pipeline.tables.collect import StageResult
from pipeline.tables.paper import Metric

CHANCE = "Rows that differ by less than three standard errors may differ by chance alone."
"""Two standard errors of a difference are 2 sqrt(2) of one number's. On the same images, as here,
differences vary less than that, by how much the predictions would tell."""


def standard_error(metric: Metric, name: str, run: StageResult) -> float | None:
    """Return the standard error of a run's number; None where it is not known.

    Args:
        metric: The number.
        name: Its name in the metrics files.
        run: Who measured it.
    """
    value = run.metrics.get(name)
    if metric.tested == "mean":
        return run.metrics.get(f"{name}_se")
    if metric.tested != "share" or value is None or not run.test_images:
        return None
    share = value / 100
    if not 0 < share < 1:  # all or none: no image tells how others would differ
        return None
    return 100 * math.sqrt(share * (1 - share) / run.test_images)


def error_text(error: float, decimals: int) -> str:
    """Return a standard error with a number's decimals, one more where one alone would not show."""
    return fixed(error, decimals + (error < 10.0 ** (1 - decimals)))


def describe_sample(metric: Metric, name: str, run: StageResult) -> str:
    """Return how many images a run's number comes from and its standard error, as far as known."""
    if metric.tested is None or run.test_images is None or name not in run.metrics:
        return ""
    images = f"{run.test_images:,} test images"
    error = standard_error(metric, name, run)
    if error is None:
        return images
    return f"{images}, standard error {error_text(error, metric.decimals)}"


def sampling_notes(table: ResultTable) -> list[str]:
    """Return what a reader must know before comparing rows, for columns whose runs say it."""
    known, unknown = [], []
    for index, heading in enumerate(table.headings):
        cells = [line.cells[index] for line in table.lines]
        images = _images(cells)
        if heading.metric.tested is None or not images:
            continue
        name = heading.name
        errors = [error for cell in cells for error in cell.errors if error is not None]
        if errors:
            known.append(f"{name} {_range(heading, errors)} ({images} images)")
        else:
            unknown.append(f"{name} {images}")
    notes = []
    if known:
        notes.append(f"Standard error over the choice of test images: {', '.join(known)}. {CHANCE}")
    if unknown:
        notes.append(f"Test images, without a standard error: {', '.join(unknown)}.")
    return [*notes, *_chance_note(table)]


def _chance_note(table: ResultTable) -> list[str]:
    """Return what guessing would give in each column where that is known, columns alike in one."""
    columns: dict[str, list[str]] = {}
    for index, heading in enumerate(table.headings):
        cells = [line.cells[index] for line in table.lines]
        found = sorted({c.chance for c in cells if c.counted and c.chance is not None})
        if found:
            level = " or ".join(fixed(chance, heading.metric.decimals) for chance in found)
            columns.setdefault(level, []).append(heading.name)
    parts = (f"{level} in {', '.join(names)}" for level, names in columns.items())
    return [f"Guessing classes gives {'; '.join(parts)}."] if columns else []


def _images(cells: Sequence[Cell]) -> str:
    found = sorted({run.test_images for cell in cells for run in cell.counted if run.test_images})
    return " or ".join(f"{count:,}" for count in found)


def _range(heading: Heading, errors: Sequence[float]) -> str:
    low, high = (error_text(e, heading.metric.decimals) for e in (min(errors), max(errors)))
    return low if low == high else f"{low} to {high}"
