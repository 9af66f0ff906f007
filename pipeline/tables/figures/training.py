"""Pre-training by step: what is minimised, its terms, and whether the second branch is one."""

from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.axes import Axes

from pipeline.jobs.journal import Points
from pipeline.tables.figures.drawing import (
    INK,
    STYLE,
    colour,
    legend,
    log_scale,
    panel,
    svg,
    thin,
)
from pipeline.tables.health import COLLAPSED_BELOW
from pipeline.tables.replicates import Replicates


def loss_curves(journals: Mapping[str, Points], groups: Sequence[Replicates]) -> str | None:
    """Draw the pre-training loss of every experiment, and beside it the pixel loss in it.

    Args:
        journals: Experiment -> what its pre-training logged.
        groups: The suite's rows; replicates have one colour.

    Returns:
        SVG; None where no experiment has logged a loss yet.
    """
    with matplotlib.rc_context(STYLE):
        (left, whole), (right, pixels) = panel(), panel()
        draw_curves(whole, journals, groups, "pretrain/loss")
        draw_curves(pixels, journals, groups, "pretrain/loss_mae")
        if not whole.lines:
            return None
        whole.set(title="total loss", xlabel="step", ylabel="loss")
        pixels.set(title="reconstruction", xlabel="step", ylabel="loss")
        for axis in (whole, pixels):
            log_scale(axis)
            legend(axis)
        return svg(left, "loss", "Pre-training loss by step, one curve per experiment") + svg(
            right, "loss-pixels", "Reconstruction in the loss by step, one curve per experiment"
        )


def branch_curves(journals: Mapping[str, Points], groups: Sequence[Replicates]) -> str | None:
    """Draw the alignment loss and the distance of the branches of every ASL experiment.

    Returns:
        SVG; None where no experiment has logged a distance.
    """
    with matplotlib.rc_context(STYLE):
        (left, alignment), (right, distance) = panel(), panel()
        draw_curves(alignment, journals, groups, "pretrain/loss_sem")
        draw_curves(distance, journals, groups, "pretrain/branch_distance")
        if not distance.lines:
            return None
        alignment.set(title="alignment loss", xlabel="step", ylabel="loss")
        distance.set(title="distance of the branches", xlabel="step", ylabel="share of the norm")
        distance.axhline(COLLAPSED_BELOW, color=INK, linestyle=":", linewidth=1.2)
        for axis in (alignment, distance):
            log_scale(axis)
            legend(axis)
        return svg(left, "branch-loss", "Alignment loss by step") + svg(
            right, "branch", "Distance of the branches by step"
        )


def draw_curves(
    axis: Axes, journals: Mapping[str, Points], groups: Sequence[Replicates], name: str
) -> None:
    """Draw one term of every experiment; DLE dashed, for its ratio is not that of AEE."""
    for index, group in enumerate(groups):
        dash = "--" if getattr(group.recipe, "design", "") == "dle" else "-"
        label: str | None = group.label
        for key in group.keys:
            if points := journals.get(key, {}).get(name):
                axis.plot(*thin(points), dash, color=colour(index), label=label)
                label = None  # the replicates' curves share an entry of the legend
