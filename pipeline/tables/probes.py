"""What a reader must know of probes: how their heads were chosen, and which are not finished."""

from collections.abc import Iterator, Sequence

from pipeline.rounding import fixed
from pipeline.stages.table import EVALUATIONS, Stage
from pipeline.tables.collect import StageResult, Suite
from pipeline.tables.paper import Paper
from pipeline.tables.replicates import Replicates

GRIDS = ("grid_rates", "grid_k")
"""Fields of recipes that leave something to choose."""


def unfinished_probes(suite: Suite, groups: Sequence[Replicates]) -> Iterator[str]:
    """Yield a sentence for each probe that has not converged."""
    for label, key, stage, result in _probes(suite, [(group.label, group) for group in groups]):
        prefix = _prefix(stage)
        if result.metrics.get(f"{prefix}_converged") == 0:
            train, rise = (result.metrics.get(f"{prefix}_train_{n}") for n in ("acc1", "rise"))
            largest = ", at the largest rate of its grid"
            rising = (
                f"{_percent(train)} of its training images over the last tenth of its steps, "
                f"{fixed(rise, 1)} points more than over the tenth before, "
                if train is not None and rise is not None
                else ""  # too few steps to tell
            )
            yield (
                f"Not converged: {stage.name} of {label}, experiment {key}: {rising}"
                f"{_percent(result.metrics.get(f'{prefix}_acc1'))} of the test images"
                f"{largest * (result.metrics.get(f'{prefix}_rate_at_edge') == 1)}; larger rates or "
                "more epochs would give more."
            )


def _percent(value: float | None) -> str:
    return "an unknown share" if value is None else f"{fixed(value, 1)} %"


def chosen_heads(
    suite: Suite, paper: Paper, rows: Sequence[tuple[str, Replicates]]
) -> Iterator[str]:
    """Yield how each column's heads were chosen, and whose rate lies at the edge of its grid."""
    found = [*_probes(suite, rows)]
    for stage in EVALUATIONS:
        results = [each for each in found if each[2] is stage]
        chosen = [each for each in results if _has_choice(each[3].recipe)]
        if not chosen:
            continue
        header = paper.metrics[next(iter(stage.headline))].header
        shares = {f"{100 * each[3].recipe.held_out:g}" for each in chosen}
        every = "" if len(chosen) == len(results) else f" of {' and '.join(_labels(chosen))}"
        yield (
            f"{header}{every}: the best of a grid on held-out training images "
            f"({' or '.join(sorted(shares))} %), by the same rule in each row; test images were "
            "read once, by what was chosen."
        )
        edges = [each for each in chosen if _at_smallest_rate(each)]
        if edges:
            yield (
                f"{header} of {' and '.join(_labels(edges))}: the best rate is the smallest of "
                "the grid; smaller ones may give more."
            )


def _probes(
    suite: Suite, rows: Sequence[tuple[str, Replicates]]
) -> Iterator[tuple[str, str, Stage, StageResult]]:
    """Yield label, experiment, stage and result of what evaluates encoders."""
    for stage in EVALUATIONS:
        for label, group in rows:
            for key in group.keys:
                if (stage.name, key) in suite.results:
                    yield label, key, stage, suite.results[stage.name, key]


def _at_smallest_rate(found: tuple[str, str, Stage, StageResult]) -> bool:
    _, _, stage, result = found
    return result.metrics.get(f"{_prefix(stage)}_rate_at_edge") == -1


def _has_choice(recipe: object) -> bool:
    return any(getattr(recipe, name, ()) for name in GRIDS)


def _prefix(stage: Stage) -> str:
    """Return how the names of a stage's metrics begin: lp for lp_acc1."""
    return next(iter(stage.headline), "").partition("_acc1")[0]


def _labels(found: Sequence[tuple[str, str, Stage, StageResult]]) -> list[str]:
    return [*dict.fromkeys(label for label, *_ in found)]
