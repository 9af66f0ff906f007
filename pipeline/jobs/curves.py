"""The curves of a stage run as files that `dvc plots` reads: one CSV for each, in its outputs."""

import csv
import math
from pathlib import Path

from asl_core.engine.journal import SYSTEM_PREFIX
from pipeline.jobs.journal import effective_points, is_result

CURVES = "curves"
"""Folder of a run's details: `pretrain/loss` is in `curves/pretrain/loss.csv`."""

MOST_POINTS = 1000
"""Of a curve. DVC puts every point of every run that it compares into one page."""


def write_curves(journal: Path, details: Path) -> None:
    """Write each curve of a run, with the columns `step` and the last part of its name.

    Samples of the machine are no curves. Values that are no finite number are left out: a page of
    DVC cannot show them. No folder is made where there is no curve.

    Args:
        journal: The run's.
        details: Folder of the outputs that people look at.
    """
    for name, points in effective_points(journal).items():
        if is_result(name) or name.startswith(SYSTEM_PREFIX):
            continue
        path = details / CURVES / f"{name}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("step", path.stem))
            writer.writerows(
                (step, value) for step, value, _ in _thinned(points) if math.isfinite(value)
            )


def _thinned(points: list[tuple[int, float, int]]) -> list[tuple[int, float, int]]:
    """Return every n-th point, and the last one."""
    every = math.ceil(len(points) / MOST_POINTS)
    last = points[-1:] if (len(points) - 1) % every else []
    return points[::every] + last
