"""Figures of a suite's report: charts as SVG, sample pictures as data URIs.

The charts take text and axes from the page (`currentColor`), so they read on light and dark.
Reads journals and pictures of the suite's stage runs; writes nothing.
"""

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from PIL import Image

from asl_core.engine.records import effective_points
from pipeline.tables.collect import STAGES, Suite

_INK = "#010203"  # stands for the page's text colour until the SVG is written
_COLOURS = ("#3b82f6", "#f59e0b", "#10b981", "#ef4444", "#a855f7", "#14b8a6", "#ec4899", "#84cc16")
_MARKERS = "osD^vPX*"
_CURVE_POINTS = 300  # a curve is averaged to this many points; more do not show at this width
PICTURE_WIDTH = 900  # pixels; wider pictures are scaled down
PICTURES_PER_STAGE = 4  # names of pictures a stage may show; each for every experiment

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a label with two dollar signs is no formula
    "font.size": 10,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.titlesize": 10.5,
    "axes.titlecolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": _INK,
    "grid.alpha": 0.12,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}

Labels = Mapping[str, str]
"""Experiment key -> the name that it has in the tables."""


@dataclass(frozen=True)
class Picture:
    """One sample picture of one experiment."""

    experiment: str
    uri: str
    width: int
    height: int
    """Of the image as embedded, in pixels."""


def loss_curves(suite: Suite, labels: Labels) -> str | None:
    """Draw the pre-training loss of every experiment on one chart, its terms on a second.

    Returns:
        SVG; None where no experiment has a journal yet.
    """
    curves = {key: points for key in labels if (points := _journal(suite, key)).get("train/loss")}
    if not curves:
        return None
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(10.5, 3.8), layout="constrained")
        whole, terms = figure.subplots(1, 2)
        for index, key in enumerate(labels):
            colour = _COLOURS[index % len(_COLOURS)]
            points = curves.get(key, {})
            if points:
                whole.plot(*_thin(points["train/loss"]), color=colour, label=labels[key])
            for term, dash in (("train/loss_mae", "-"), ("train/loss_sem", "--")):
                if points.get(term):
                    terms.plot(*_thin(points[term]), dash, color=colour)
        whole.set(title="total loss", xlabel="step", ylabel="loss")
        terms.set(title="terms: reconstruction solid, alignment dashed", xlabel="step")
        whole.legend(fontsize=8.5)
        for axis in (whole, terms):
            if axis.lines:
                _log_scale(axis)
        return _svg(figure, "loss", "Pre-training loss by step, one curve per experiment")


def similarity_against_probe(suite: Suite, labels: Labels) -> str | None:
    """Draw Figure 1 for the suite: linear probe over token similarity, a point per experiment."""
    points = []
    for index, key in enumerate(labels):
        similarity = _metric(suite, "analyze", key, "token_similarity")
        accuracy = _metric(suite, "linprobe", key, "lp_acc1")
        if similarity is not None and accuracy is not None:
            points.append((index, key, similarity, accuracy))
    if not points:
        return None
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5.4, 4.0), layout="constrained")
        axis = figure.subplots()
        for index, key, similarity, accuracy in points:
            axis.plot(
                similarity, accuracy, _MARKERS[index % len(_MARKERS)], markersize=8,
                color=_COLOURS[index % len(_COLOURS)], label=labels[key],
            )  # fmt: skip
        axis.margins(0.18)
        axis.set(xlabel="token similarity (mean cosine)", ylabel="linear probe top-1 [%]")
        axis.legend(fontsize=8.5)
        return _svg(figure, "figure1", "Linear probe accuracy over token similarity")


def similarity_by_layer(suite: Suite, labels: Labels) -> str | None:
    """Draw the token similarity after every block, one curve per experiment."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5.4, 4.0), layout="constrained")
        axis = figure.subplots()
        for index, key in enumerate(labels):
            values = _layers(suite, key)
            if values:
                axis.plot(
                    range(len(values)), values, "-" + _MARKERS[index % len(_MARKERS)],
                    markersize=4, color=_COLOURS[index % len(_COLOURS)], label=labels[key],
                )  # fmt: skip
        if not axis.lines:
            return None
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set(xlabel="layer", ylabel="token similarity (mean cosine)")
        axis.legend(fontsize=8.5)
        return _svg(figure, "layers", "Token similarity by layer, one curve per experiment")


def pictures(suite: Suite, labels: Labels) -> dict[tuple[str, str], list[Picture]]:
    """Return (stage, file name) -> the experiments' pictures of that name, as data URIs."""
    found: dict[tuple[str, str], list[Picture]] = {}
    for stage in STAGES:
        names: dict[str, None] = {}
        for key in labels:
            folder = suite.run_folder(stage, key) / "pictures"
            if (stage, key) in suite.results and folder.is_dir():
                names |= dict.fromkeys(path.name for path in sorted(folder.glob("*.png")))
        for name in sorted(names)[:PICTURES_PER_STAGE]:
            found[stage, name] = [
                embed_picture(path, key)
                for key in labels
                if (stage, key) in suite.results
                and (path := suite.run_folder(stage, key) / "pictures" / name).is_file()
            ]
    return found


def embed_picture(path: Path, experiment: str) -> Picture:
    """Return a PNG as a data URI, scaled down to PICTURE_WIDTH."""
    with Image.open(path) as image:
        width, height = image.size
        content = path.read_bytes()
        if width > PICTURE_WIDTH:
            width, height = PICTURE_WIDTH, round(height * PICTURE_WIDTH / width)
            small = image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
            buffer = BytesIO()
            small.save(buffer, "PNG", optimize=True)
            content = buffer.getvalue()
    uri = "data:image/png;base64," + base64.b64encode(content).decode("ascii")
    return Picture(experiment, uri, width, height)


def _journal(suite: Suite, key: str) -> dict[str, list[tuple[int, float, int]]]:
    folder = suite.run_folder("pretrain", key) / "journal"
    return effective_points(folder) if folder.is_dir() else {}


def _metric(suite: Suite, stage: str, key: str, name: str) -> float | None:
    result = suite.results.get((stage, key))
    return result.metrics.get(name) if result else None


def _layers(suite: Suite, key: str) -> list[float]:
    result = suite.results.get(("analyze", key))
    named = {
        int(match[1]): value
        for name, value in (result.metrics if result else {}).items()
        if (match := re.fullmatch(r"token_similarity_layer_(\d+)", name))
    }
    return [named[layer] for layer in sorted(named)]


def _thin(points: Sequence[tuple[int, float, int]]) -> tuple[list[float], list[float]]:
    """Average neighbouring points so that at most _CURVE_POINTS remain."""
    width = -(-len(points) // _CURVE_POINTS)
    groups = [points[start : start + width] for start in range(0, len(points), width)]
    steps = [sum(step for step, *_ in group) / len(group) for group in groups]
    values = [sum(value for _, value, *_ in group) / len(group) for group in groups]
    return steps, values


def _log_scale(axis: Axes) -> None:
    """Plain numbers at 1, 2, 5: a loss rarely spans a decade, and then powers of ten say little."""
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_locator(NullLocator())


def _svg(figure: Figure, name: str, description: str) -> str:
    """Return a figure as an SVG element whose ids are its own and whose ink is the page's."""
    buffer = StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    content = buffer.getvalue()
    content = content[content.index("<svg") :]
    content = re.sub(r'\bid="', f'id="{name}-', content)
    content = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", content)
    content = content.replace(_INK, "currentColor")
    return content.replace("<svg", f'<svg role="img" aria-label="{description}"', 1)
