"""MAE as patch-level contrastive learning: how far Eq. 8 follows the squared error of Eq. 1."""

from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from pipeline.tables.contrastive import Contrastive, Measured, column
from pipeline.tables.figures.drawing import INK, STYLE, colour, legend, marker, panel, svg
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
    names = [f"{name} {x}" for name in ("pearson", "spearman") for x in ("batch", "temperature")]
    with matplotlib.rc_context(STYLE):
        panels = {name: panel() for name in [*names, *(["step"] if trained else [])]}
        axes = {name: axis for name, (_, axis) in panels.items()}
        for place, group in enumerate(groups):
            label: str | None = group.label
            for view in (views[key] for key in group.keys if key in views):
                for name in ("pearson", "spearman"):
                    _draw(axes[f"{name} batch"], view.by_batch, "batch", name, place, label)
                    temperature = axes[f"{name} temperature"]
                    _draw(temperature, view.by_temperature, "temperature", name, place, label)
                if trained:
                    _draw(axes["step"], view.over_training, "step", "retrieval_acc1", place, label)
                label = None  # one entry of the legend for a row
        for name in ("pearson", "spearman"):
            for x in ("batch", "temperature"):
                axes[f"{name} {x}"].set_ylabel(f"{name.capitalize()} correlation")
            _log_axis(axes[f"{name} batch"], "batch [images]", 2)
            _log_axis(axes[f"{name} temperature"], "temperature", 10)
        if trained:
            axes["step"].set(title="retrieval", xlabel="step", ylabel="nearest is own patch [%]")
            for chance in chances:
                axes["step"].axhline(chance, color=INK, linestyle=":", linewidth=1.2)
        for axis in axes.values():
            legend(axis)
        what = "Squared error against the contrastive loss of Eq. 8"
        return "".join(
            svg(figure, f"contrastive-{name.replace(' ', '-')}", f"{what}: {name}")
            for name, (figure, _) in panels.items()
        )


def _draw(
    axis: Axes, measured: Measured, x: str, y: str, place: int, label: str | None = None
) -> None:
    if measured:
        axis.plot(
            column(measured, x), column(measured, y), "-" + marker(place), markersize=4,
            color=colour(place), label=label,
        )  # fmt: skip


def _log_axis(axis: Axes, name: str, base: int) -> None:
    axis.set_xscale("log", base=base)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlabel(name)
