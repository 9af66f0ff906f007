"""Pre-training at its snapshots: what the encoder is worth, and what the alignment does to it."""

from collections.abc import Mapping, Sequence
from statistics import fmean

import matplotlib

from asl_core.analysis import watched
from pipeline.jobs.journal import Points
from pipeline.tables.figures.drawing import INK, STYLE, legend, log_scale, panel, svg
from pipeline.tables.figures.training import draw_curves
from pipeline.tables.replicates import Replicates

LIMITS = {
    watched.DISTANCE: watched.COLLAPSED_DISTANCE,
    watched.GRADIENT_SHARE: watched.COLLAPSED_GRADIENT,
}
"""Where a dotted line is: a run that ends below both has collapsed."""


def watched_curves(journals: Mapping[str, Points], groups: Sequence[Replicates]) -> str | None:
    """Draw what every experiment was watched for, one panel for each curve that anybody has.

    Args:
        journals: Experiment -> what its pre-training logged.
        groups: The suite's rows; replicates have one colour.

    Returns:
        SVG; None where no experiment was watched.
    """
    names = [name for name in watched.TITLES if any(name in found for found in journals.values())]
    if not names:
        return None
    drawn = []
    with matplotlib.rc_context(STYLE):
        for number, name in enumerate(names):
            figure, axis = panel()
            draw_curves(axis, journals, groups, name)
            axis.set(title=watched.TITLES[name], xlabel="step")
            floors = [found[name][0] for found in journals.values() if name in found]
            untrained = [value for step, value, _ in floors if step == 0]
            if name in watched.ACCURACIES and untrained:
                axis.axhline(fmean(untrained), color=INK, linestyle="--", linewidth=1.2)
            if name in LIMITS:
                axis.axhline(LIMITS[name], color=INK, linestyle=":", linewidth=1.2)
                log_scale(axis)
            legend(axis)
            drawn.append(svg(figure, f"watched-{number}", f"{watched.TITLES[name]}, by step"))
    return "".join(drawn)
