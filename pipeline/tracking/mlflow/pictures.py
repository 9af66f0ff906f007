"""Curves of a run as one picture, for readers of the store's artifacts."""

from pathlib import Path

import matplotlib

from pipeline.jobs.journal import Points

PANELS = (("loss", "loss"), ("lr", "learning rate"), ("images_per_s", "images / s"))


def draw_curves(curves: Points, title: str, path: Path) -> None:
    """Draw loss (with its terms), learning rate and throughput over the steps into a PNG."""
    matplotlib.use("Agg")
    from matplotlib.figure import Figure  # after the backend is chosen: no display here

    alone = {"lr", "images_per_s"}
    terms = [key for key in curves if key not in alone and key != "loss"]
    panels = [panel for panel in PANELS if panel[0] in curves]
    figure = Figure(figsize=(4.2 * max(1, len(panels)), 3.2), layout="constrained")
    for axes, (key, label) in zip(figure.subplots(1, max(1, len(panels)), squeeze=False)[0], panels,
                                  strict=False):  # fmt: skip
        for name in [key, *terms] if key == "loss" else [key]:
            steps, values, _ = zip(*curves[name], strict=True)
            axes.plot(steps, values, label=name, linewidth=1.6 if name == key else 1.0)
        axes.set_xlabel("optimiser step")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        if key == "loss" and terms:
            axes.legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=110)
