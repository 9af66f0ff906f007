"""A sweep's metric against each value that it varies."""

from collections.abc import Iterator, Mapping
from typing import Any

import matplotlib
from matplotlib.axes import Axes

from pipeline.tables.figures.drawing import INK, STYLE, colour, legend, marker, panel, svg
from pipeline.tables.sweep import Candidate, SweepTable
from pipeline.tables.sweep_formats import value_text_of

_WIDE = 5.0
"""A field whose largest value is so many times its smallest has a logarithmic axis."""


def sweep_chart(table: SweepTable, number: int) -> str | None:
    """Draw one panel for each varied field: runs alike in the other fields are joined by a line.

    Bars are one standard error; dashed: the floor, of several the highest.

    Args:
        table: The sweep.
        number: Of the chart on its page.

    Returns:
        SVG; None where nothing is measured yet, or no field varies.
    """
    if not table.ranked or not table.varied:
        return None
    drawn = []
    with matplotlib.rc_context(STYLE):
        for place, name in enumerate(table.varied):
            figure, axis = panel()
            ticks = _ticks(table, name)
            for index, (label, points) in enumerate(_lines(table, name)):
                _draw(axis, index, label, [(ticks[repr(p.values[name])], p) for p in points])
            floors = [each.floor for each in table.ranked if each.floor is not None]
            if floors:
                axis.axhline(max(floors), color=INK, linestyle="--", linewidth=1.2)
            _scale(axis, table, name, ticks)
            axis.set(title=name, xlabel=name, ylabel=table.metric.name)
            legend(axis)
            told = f"{table.metric.name} of {table.experiment} by {name}"
            drawn.append(svg(figure, f"sweep-{number}-{place}", told))
    return "".join(drawn)


def _draw(axis: Axes, index: int, label: str, points: list[tuple[float, Candidate]]) -> None:
    points.sort(key=lambda point: point[0])
    axis.errorbar(
        [x for x, _ in points],
        [each.value or 0.0 for _, each in points],
        yerr=[each.error or 0.0 for _, each in points],
        color=colour(index), marker=marker(index), markersize=5, capsize=2, elinewidth=1.0,
        label=label or None,
    )  # fmt: skip


def _lines(table: SweepTable, name: str) -> Iterator[tuple[str, list[Candidate]]]:
    """Yield the runs that are alike in the other fields, with what these are."""
    others = [each for each in table.varied if each != name]
    lines: dict[str, list[Candidate]] = {}
    for each in sorted(table.ranked, key=lambda each: [_order(each.values[o]) for o in others]):
        label = ", ".join(f"{other} {value_text_of(each.values[other])}" for other in others)
        lines.setdefault(label, []).append(each)
    yield from lines.items()


def _order(value: object) -> tuple[bool, float, str]:
    """Return by what values are put in order: numbers by size, then words."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return not number, float(value) if number else 0.0, "" if number else str(value)  # type: ignore[arg-type]


def _is_numeric(table: SweepTable, name: str) -> bool:
    return all(not _order(each.values[name])[0] for each in table.candidates)


def _ticks(table: SweepTable, name: str) -> Mapping[str, float]:
    """Return value -> place on the axis: numbers where they are, words side by side."""
    values: list[Any] = sorted((each.values[name] for each in table.candidates), key=_order)
    places = dict.fromkeys(map(repr, values))
    if _is_numeric(table, name):
        return {repr(value): float(value) for value in values}
    return {text: float(place) for place, text in enumerate(places)}


def _scale(axis: Axes, table: SweepTable, name: str, ticks: Mapping[str, float]) -> None:
    """Mark the values that were tried, and no others."""
    values = {repr(each.values[name]): each.values[name] for each in table.candidates}
    numbers = list(ticks.values())
    if _is_numeric(table, name) and min(numbers) > 0 and max(numbers) > _WIDE * min(numbers):
        axis.set_xscale("log")
    axis.set_xticks(numbers, [value_text_of(values[text]) for text in ticks])
    axis.set_xticks([], minor=True)
