"""What the analyze stage found of Eq. 8, from runs/analyze/<key>/contrastive.json. Reads only."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.errors import UserError
from pipeline.tables.collect import Suite
from pipeline.tables.replicates import Replicates

FILE_NAME = "contrastive.json"

Measured = Sequence[Mapping[str, float | None]]
"""Rows of name -> value; None where a number has no meaning."""


@dataclass(frozen=True)
class Contrastive:
    """The squared error of a patch against its contrastive form, for one encoder and decoder."""

    by_batch: Measured
    """batch, pearson, spearman, ... by the number of images that a patch is told apart in."""
    by_temperature: Measured
    """temperature, pearson, spearman, ..."""
    over_training: Measured
    """step, retrieval_acc1 [percent], loss_mae; empty where pre-training kept no snapshots."""


def read_contrastive(suite: Suite, groups: Sequence[Replicates]) -> dict[str, Contrastive]:
    """Return experiment -> its contrastive view, for those whose analysis has one.

    Raises:
        UserError: A file is damaged.
    """
    return {
        key: view
        for group in groups
        for key in group.keys
        if ("analyze", key) in suite.results and (view := _read(suite, key)) is not None
    }


def column(measured: Measured, name: str) -> list[float]:
    """Return one quantity of all rows, NaN (a gap in a curve) where it has no value."""
    values = (row[name] for row in measured)
    return [math.nan if value is None else float(value) for value in values]


def _read(suite: Suite, key: str) -> Contrastive | None:
    path = suite.run_folder("analyze", key) / FILE_NAME
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        view = Contrastive(
            by_batch=_sorted(content["by_batch"], "batch"),
            by_temperature=_sorted(content["by_temperature"], "temperature"),
            over_training=_sorted(content["over_training"], "step"),
        )
        for rows, names in ((view.by_batch, ("pearson", "spearman")),
                            (view.by_temperature, ("pearson", "spearman")),
                            (view.over_training, ("retrieval_acc1",))):  # fmt: skip
            for name in names:
                column(rows, name)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is no contrastive view ({error!r}); delete it and run its stage"
        ) from error
    return view


def _sorted(rows: Measured, by: str) -> Measured:
    return sorted(rows, key=lambda row: float(row[by] or 0))
