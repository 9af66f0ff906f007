"""How every chart of the report is drawn: style, colours, thinning, SVG.

The charts take text and axes from the page (`currentColor`), so they read on light and dark.
The same figure gives the same bytes. A chart of several panels is several SVG elements, one after
the other: the page sets them side by side where it is wide and below each other where it is not.
"""

import re
from collections.abc import Sequence
from io import StringIO
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from pipeline.jobs.journal import Points, effective_points
from pipeline.tables.collect import Suite

INK = "#010203"  # stands for the page's text colour until the SVG is written
COLOURS = ("#3b82f6", "#f59e0b", "#10b981", "#ef4444", "#a855f7", "#14b8a6", "#ec4899", "#84cc16")
MARKERS = "osD^vPX*"
CURVE_POINTS = 300  # a curve is averaged to this many points; more do not show at this width
LEGEND_ROWS = 4  # charts of more have no legend of their own: the page has one key for all
PANEL = (4.4, 3.3)  # inches: text is readable where the panel is 350 pixels wide, as on a phone

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a label with two dollar signs is no formula
    "font.size": 10,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": 10.5,
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": INK,
    "grid.alpha": 0.12,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}


def colour(index: int) -> str:
    """Return the colour of a row, the same in every chart."""
    return COLOURS[index % len(COLOURS)]


def marker(index: int) -> str:
    """Return the marker of a row; rows that share a colour have different ones."""
    return MARKERS[(index + index // len(COLOURS)) % len(MARKERS)]


def read_journals(suite: Suite, keys: Sequence[str]) -> dict[str, Points]:
    """Return what each experiment's pre-training logged; nothing for one without a journal."""
    folders = {key: suite.run_folder("pretrain", key) / "journal" for key in keys}
    return {key: effective_points(path) if path.is_dir() else {} for key, path in folders.items()}


def thin(points: Sequence[tuple[int, float, int]]) -> tuple[list[float], list[float]]:
    """Average neighbouring points so that at most CURVE_POINTS remain."""
    width = -(-len(points) // CURVE_POINTS)
    groups = [points[start : start + width] for start in range(0, len(points), width)]
    steps = [sum(step for step, *_ in group) / len(group) for group in groups]
    values = [sum(value for _, value, *_ in group) / len(group) for group in groups]
    return steps, values


def log_scale(axis: Axes) -> None:
    """Plain numbers at 1, 2, 5, closer where the curves span less than that: few powers of ten."""
    if not any(np.any(np.asarray(line.get_ydata()) > 0) for line in axis.lines):
        return  # nothing drawn, or a term that is 0 all along
    axis.set_yscale("log")
    low, high = axis.get_ylim()
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > 10 * low else MaxNLocator(6))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_locator(NullLocator())


def panel() -> tuple[Figure, Axes]:
    """Return an empty chart, which is one panel of a figure of the page or all of it."""
    figure = Figure(figsize=PANEL, layout="constrained")
    return figure, figure.subplots()


def legend(axis: Axes) -> None:
    """Name the rows inside the chart where they are few; of many the page names them once."""
    handles, _ = axis.get_legend_handles_labels()
    if 0 < len(handles) <= LEGEND_ROWS:
        axis.legend(fontsize=9)


def svg(figure: Figure, name: str, description: str) -> str:
    """Return a figure as an SVG element whose ids are its own and whose ink is the page's."""
    buffer = StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    content = buffer.getvalue()
    content = content[content.index("<svg") :]
    content = re.sub(r'\bid="', f'id="{name}-', content)
    content = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", content)
    content = content.replace(INK, "currentColor")
    return content.replace("<svg", f'<svg role="img" aria-label="{description}"', 1)
