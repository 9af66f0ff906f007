"""Figure 1: token similarity against linear probing, and the similarity layer by layer."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import matplotlib
from matplotlib.ticker import MaxNLocator

from pipeline.tables.collect import Suite
from pipeline.tables.figures.drawing import STYLE, colour, legend, marker, panel, svg
from pipeline.tables.replicates import Replicates, experiment_labels

AXES = {"token analysis": ("analyze", "token_similarity"), "linear probe": ("linprobe", "lp_acc1")}
"""What a point needs -> stage and metric: x, y."""

_LAYER = re.compile(r"token_similarity_layer_(\d+)")


@dataclass(frozen=True)
class Point:
    """One row of the suite: a pair of numbers for each pre-training seed."""

    place: int
    """Of the row, which gives its colour."""
    label: str
    similarity: tuple[float, ...]
    accuracy: tuple[float, ...]


def find_points(suite: Suite, groups: Sequence[Replicates]) -> tuple[list[Point], dict[str, str]]:
    """Return the points of Figure 1, and experiment -> what it lacks for those without one.

    A point has no room for a mark: numbers that are not those of dvc.lock are left out.
    """
    points, left_out = [], {}
    names = experiment_labels(groups)
    for place, group in enumerate(groups):
        pairs = []
        for key in group.keys:
            found = {need: _metric(suite, stage, key, name)
                     for need, (stage, name) in AXES.items()}  # fmt: skip
            if lacking := [need for need, value in found.items() if value is None]:
                left_out[names[key]] = "no " + " and no ".join(lacking)
            else:
                pairs.append(tuple(value for value in found.values() if value is not None))
        if pairs:
            similarity, accuracy = zip(*pairs, strict=True)
            points.append(Point(place, group.label, similarity, accuracy))
    return points, left_out


def similarity_against_probe(points: Sequence[Point]) -> str | None:
    """Draw Figure 1 for the suite: a point per row, bars of one deviation over its seeds."""
    if not points:
        return None
    with matplotlib.rc_context(STYLE):
        figure, axis = panel()
        for point in points:
            axis.errorbar(
                fmean(point.similarity), fmean(point.accuracy),
                xerr=_deviation(point.similarity), yerr=_deviation(point.accuracy),
                fmt=marker(point.place), markersize=8, capsize=3, color=colour(point.place),
                label=point.label,
            )  # fmt: skip
        axis.margins(0.18)
        axis.set(xlabel="token similarity (mean cosine)", ylabel="linear probe top-1 [%]")
        legend(axis)
        return svg(figure, "figure1", "Linear probe accuracy over token similarity")


def similarity_by_layer(suite: Suite, groups: Sequence[Replicates]) -> str | None:
    """Draw the token similarity layer by layer, a curve per row: the mean over its seeds."""
    with matplotlib.rc_context(STYLE):
        figure, axis = panel()
        for place, group in enumerate(groups):
            curves = [curve for key in group.keys if (curve := _layers(suite, key))]
            layers = sorted(set.intersection(*map(set, curves))) if curves else []
            if layers:
                columns = [[curve[layer] for curve in curves] for layer in layers]
                axis.errorbar(
                    layers, [fmean(column) for column in columns],
                    yerr=[stdev(column) for column in columns] if len(curves) > 1 else None,
                    fmt="-" + marker(place), markersize=4, capsize=2, color=colour(place),
                    label=group.label,
                )  # fmt: skip
        if not axis.lines:
            return None
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set(xlabel="block (0: embedded patches)", ylabel="token similarity (mean cosine)")
        legend(axis)
        return svg(figure, "layers", "Token similarity by block, one curve per row")


def _deviation(values: Sequence[float]) -> float | None:
    return stdev(values) if len(values) > 1 else None


def _metric(suite: Suite, stage: str, key: str, name: str) -> float | None:
    return _metrics(suite, stage, key).get(name)


def _layers(suite: Suite, key: str) -> dict[int, float]:
    """Return block -> mean token cosine after it."""
    return {
        int(match[1]): value
        for name, value in _metrics(suite, "analyze", key).items()
        if (match := _LAYER.fullmatch(name))
    }


def _metrics(suite: Suite, stage: str, key: str) -> Mapping[str, float]:
    """Return what a run measured, nothing where dvc.lock records something else."""
    result = suite.results.get((stage, key))
    return {} if result is None or result.difference else result.metrics
