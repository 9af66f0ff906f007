"""What a row costs to pre-train: multiply-adds beside the paper's, parameters.

The paper's column of FLOPs follows no one convention: ~2.8x and ~6x lie between the forward pass
and the training step (docs/reference.md). So ours is given for both.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from pipeline.rounding import fixed, significant
from pipeline.tables.cells import Cell, Heading
from pipeline.tables.collect import StageResult, Suite
from pipeline.tables.paper import FLOPS, Paper, Table
from pipeline.tables.replicates import Replicates

TRAIN, FORWARD, PARAMETERS = "flops_train_g", "flops_forward_g", "parameters_m"
ENCODER_PARAMETERS, ACTIVATIONS = "encoder_parameters_m", "activation_mib_per_image"
BASELINE = "mae"
"""The method whose cost is 1x in the paper's tables."""
MASK_RATIO = "mask_ratio"


def cost_headings(suite: Suite, paper: Paper, table: Table | None) -> dict[str, Heading]:
    """Return the columns of cost that the suite's runs have counted, by metric.

    Args:
        suite: Its results.
        paper: The metrics.
        table: Where the paper's FLOPs are from; absent, or without such a column: none.
    """
    headings = {}
    for name in (TRAIN, FORWARD, PARAMETERS):
        if any(_counted(suite, e.key, name) is not None for e in suite.experiments):
            printed = table is not None and FLOPS in table.given and name == TRAIN
            headings[name] = Heading(
                paper.metrics[name],
                paper.metrics[name].header,
                paper_table=table.number if table and printed else "",
                paper_data=f"{table.model}, what is counted is not stated" if table else "",
            )
    return headings


def cost_cell(
    suite: Suite, paper: Paper, group: Replicates | None, name: str, printed: str | None
) -> Cell:
    """Return what a row costs; FLOPs as a multiple of MAE's with the same model.

    Args:
        suite: Its results.
        paper: The metrics.
        group: The row's experiments; absent for a row that is not run.
        name: A metric of `cost_headings`.
        printed: The paper's own statement, `~1.5x`.
    """
    metric = paper.metrics[name]
    if group is None:
        return Cell(metric, paper=printed)
    values, bases = [], []
    for experiment in group.experiments:
        value = _counted(suite, experiment.key, name)
        if name != PARAMETERS:
            value = flops_ratio(suite, experiment.key, experiment.recipe, name)
            bases.append(baseline(suite, experiment.recipe, name))
        values.append(value)
    return Cell(
        metric,
        paper=printed,
        runs=tuple(suite.results["pretrain", key] for key in group.keys),
        values=tuple(values),
        based_on=tuple(base for base in bases if base is not None),
        replicates=len(group.experiments),
        detail=_detail(suite, group, name),
    )


def flops_ratio(suite: Suite, key: str, recipe: Any, name: str = TRAIN) -> float | None:
    """Return an experiment's multiply-adds over those of MAE with the same model.

    None where one of the two has not been counted; see `baseline`.
    """
    own, base = _counted(suite, key, name), baseline(suite, recipe, name)
    if own is None or base is None:
        return None
    return own / base.metrics[name]


def baseline(suite: Suite, recipe: Any, name: str = TRAIN) -> StageResult | None:
    """Return the run of MAE that an experiment's multiply-adds are compared with.

    Both remove the same share of patches, or each what its authors have it remove.
    """
    counted = [
        other
        for other in suite.experiments
        if other.recipe.method == BASELINE
        and _size(other.recipe) == _size(recipe)
        and _counted(suite, other.key, name)
    ]
    for alike in (_same_mask_ratio, _own_mask_ratios):
        for other in counted:
            if alike(other.recipe, recipe):
                return suite.results["pretrain", other.key]
    return None


def cost_remarks(suite: Suite, rows: Iterable[tuple[str, Replicates]]) -> tuple[str, ...]:
    """Return what stands behind the multiples: the absolute numbers of each row.

    Args:
        suite: Its results.
        rows: Name and experiments of each row of a table that is run.
    """
    absolute: dict[str, list[str]] = {}
    counted = False
    for label, group in rows:
        train, forward, activations = (
            _of_group(suite, group, name) for name in (TRAIN, FORWARD, ACTIVATIONS)
        )
        if train is None or forward is None:
            continue
        cost = f"{_digits(train)} / {_digits(forward)}"
        if activations is not None:
            cost, counted = f"{cost} / {_digits(activations)} MiB", True
        absolute.setdefault(cost, []).append(label)
    if not absolute:
        return ()
    listed = "; ".join(f"{cost} ({' and '.join(labels)})" for cost, labels in absolute.items())
    return (
        "FLOPs: multiply-adds of a training step, and of a forward pass, as multiples of MAE's "
        "with the same model, each method with its own share of removed patches; the paper does "
        "not say which of the two it counts. "
        f"Absolute, GMAC an image, training / forward{' / activations' if counted else ''}: "
        f"{listed}.",
    )


def _detail(suite: Suite, group: Replicates, name: str) -> str:
    value = _of_group(suite, group, ENCODER_PARAMETERS if name == PARAMETERS else name)
    if value is None:
        return ""
    return (
        f"encoder {fixed(value, 2)} M" if name == PARAMETERS else f"{_digits(value)} GMAC an image"
    )


def _of_group(suite: Suite, group: Replicates, name: str) -> float | None:
    found: Sequence[float | None] = [_counted(suite, key, name) for key in group.keys]
    return next((value for value in found if value is not None), None)


def _counted(suite: Suite, key: str, name: str) -> float | None:
    result = suite.results.get(("pretrain", key))
    return result.metrics.get(name) if result else None


def _size(recipe: Any) -> Any:
    return getattr(recipe, "model", None)


def _same_mask_ratio(mae: Any, recipe: Any) -> bool:
    return getattr(recipe, MASK_RATIO, None) == mae.mask_ratio


def _own_mask_ratios(mae: Any, recipe: Any) -> bool:
    return all(
        field.name != MASK_RATIO or getattr(each, MASK_RATIO) == field.default
        for each in (mae, recipe)
        for field in dataclasses.fields(each)
    )


def _digits(value: float) -> str:
    """Return three significant digits, and no exponent above a thousand."""
    return significant(value, 3) if value < 1000 else fixed(value, 0)
