"""MAE as patch-level contrastive learning: how far Eq. 8 follows the squared error of Eq. 1."""

from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.tables.contrastive import Contrastive, Measured, column
from pipeline.tables.figures.drawing import INK, STYLE, colour, legend, marker, svg
from pipeline.tables.replicates import Replicates


def contrastive_view(
    views: Mapping[str, Contrastive], groups: Sequence[Replicates], chances: Sequence[float]
) -> str | None:
    """Draw correlation by batch and by temperature, and retrieval over training where kept.

    Args:
        views: Experiment -> what its analysis measured.
        groups: The suite's rows; replicates have one colour.
        chances: Retrieval of random predictions, percent, one for each setting in the suite.

    Returns:
        SVG; None without any analysis.
    """
    if not views:
        return None
    trained = any(view.over_training for view in views.values())
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.5, 3.8), layout="constrained")
        axes: list[Axes] = list(figure.subplots(1, 3 if trained else 2))
        for place, group in enumerate(groups):
            label: str | None = group.label
            for view in (views[key] for key in group.keys if key in views):
                _draw(axes[0], view.by_batch, "batch", ("pearson", "spearman"), place, label)
                _draw(axes[1], view.by_temperature, "temperature", ("pearson", "spearman"), place)
                if trained:
                    _draw(axes[2], view.over_training, "step", ("retrieval_acc1",), place)
                label = None
        for axis, name in zip(axes, ("batch [images]", "temperature"), strict=False):
            axis.set_xscale("log", base=2 if axis is axes[0] else 10)
            axis.set(title="agreement of the losses", xlabel=name)
        axes[0].xaxis.set_major_formatter("{x:g}")
        axes[0].set_ylabel("correlation over patches")
        if trained:
            axes[2].set(title="retrieval", xlabel="step", ylabel="nearest is own patch [%]")
            for chance in chances:
                axes[2].axhline(chance, color=INK, linestyle=":", linewidth=1.2)
        legend(figure, axes[0])
        return svg(figure, "contrastive", "Squared error against the contrastive loss of Eq. 8")


def _draw(
    axis: Axes, measured: Measured, x: str, names: Sequence[str], place: int,
    label: str | None = None,
) -> None:  # fmt: skip
    """Draw columns over a column, the first solid, the second dashed."""
    for name, dash in zip(names, ("-", "--"), strict=False):
        if measured:
            axis.plot(
                column(measured, x), column(measured, name), dash + marker(place), markersize=4,
                color=colour(place), label=label,
            )  # fmt: skip
        label = None
