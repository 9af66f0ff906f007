"""What the runs of a table's rows put into it: numbers, warnings, remarks."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from pipeline.stages.table import EVALUATIONS
from pipeline.tables.cells import Cell
from pipeline.tables.chance import chance_of_runs
from pipeline.tables.collect import StageResult, Suite
from pipeline.tables.cost import cost_remarks
from pipeline.tables.floor import floor_runs, highest
from pipeline.tables.health import find_branches, watched_remark, watched_warnings
from pipeline.tables.paper import Metric, Paper
from pipeline.tables.probes import chosen_heads, unfinished_probes
from pipeline.tables.replicates import Replicates
from pipeline.tables.uncertainty import describe_sample, standard_error


def result_cell(
    suite: Suite, paper: Paper, group: Replicates | None, name: str, value: float | None
) -> Cell:
    """Return a row's number under one metric beside the paper's.

    Args:
        suite: Its results.
        paper: The metrics.
        group: The row's experiments; absent for a row that is not run.
        name: The metric.
        value: The paper's number.
    """
    metric = paper.metrics[name]
    if group is None:
        return Cell(metric, paper=value)
    runs = tuple(
        suite.results[metric.stage, key]
        for key in group.keys
        if (metric.stage, key) in suite.results
    )
    floors = floor_runs(suite, group.recipe, runs) if metric.more_is_better else []
    return replace(
        _measured_cell(metric, name, runs),
        paper=value,
        replicates=len(group.experiments),
        floor=highest([_measured_cell(metric, name, each) for each in floors]),
        chance=chance_of_runs(suite, metric, runs),
    )


def _measured_cell(metric: Metric, name: str, runs: tuple[StageResult, ...]) -> Cell:
    """Return what some runs, alike but for their seeds, have measured."""
    samples = (describe_sample(metric, name, run) for run in runs)
    return Cell(
        metric,
        runs=runs,
        values=tuple(run.metrics.get(name) for run in runs),
        undefined=tuple(name in run.undefined for run in runs),
        errors=tuple(standard_error(metric, name, run) for run in runs),
        detail="; ".join(dict.fromkeys(filter(None, samples))),
    )


def warnings(suite: Suite, groups: Sequence[Replicates]) -> tuple[str, ...]:
    """Return what a reader must know of these rows first.

    That is which numbers are not those of dvc.lock, which branches have collapsed, what else was
    seen in pre-training, and which probes have not converged.
    """
    keys = {key for group in groups for key in group.keys}
    runs = (run for (_, key), run in suite.results.items() if key in keys)
    branches = find_branches(suite, groups)
    return (
        *(run.warning for run in runs if run.difference),
        *(branch.warning for branch in branches if branch.collapsed),
        *watched_warnings(suite, groups),
        *unfinished_probes(suite, groups),
    )


def remarks(suite: Suite, paper: Paper, rows: Sequence[tuple[str, Replicates]]) -> tuple[str, ...]:
    """Return what stands behind a table: costs, passes, what was read out, watched branches, data.

    Args:
        suite: Its results.
        paper: The metrics.
        rows: Name and experiments of each row that is run.
    """
    data = (
        f"Data {name}: {note}"
        for name, manifest in suite.datasets.items()
        for note in (*_rejected(suite, name), *manifest.notes)
        if note not in _notes_of_images(suite, name)
    )
    watched = watched_remark(find_branches(suite, [group for _, group in rows]))
    return (
        *cost_remarks(suite, rows), *_passes(rows), *_pooled(suite, paper, rows),
        *chosen_heads(suite, paper, rows), *watched, *data,
    )  # fmt: skip


def _rejected(suite: Suite, dataset: str) -> tuple[str, ...]:
    """Return one line on the images that could not be used, where it is not that of another."""
    manifest = suite.datasets[dataset]
    rejected = [each for split in manifest.rejected.values() for each in split]
    if not rejected or dataset in suite.tokenized:
        return ()
    total = len(rejected) + sum(manifest.counts.values())
    name, reason = rejected[0]
    return (
        f"{len(rejected)} of {total} images could not be used, the first {name}: {reason}; "
        f"all are in data/{dataset}/manifest.json.",
    )


def _notes_of_images(suite: Suite, dataset: str) -> tuple[str, ...]:
    """Return what the notes of the dataset say whose images this one has: said there already."""
    images = suite.datasets.get(suite.tokenized.get(dataset, ""))
    return () if images is None else images.notes


def _passes(rows: Sequence[tuple[str, Replicates]]) -> tuple[str, ...]:
    """Return one line that says how long each row was pre-trained, where that is not the same."""
    by_epochs: dict[int, list[str]] = {}
    for label, group in rows:
        epochs = getattr(group.recipe, "epochs", None)
        if epochs is not None:
            by_epochs.setdefault(epochs, []).append(label)
    if len(by_epochs) < 2:
        return ()
    lengths = (f"{epochs} for {' and '.join(labels)}" for epochs, labels in by_epochs.items())
    return (f"Passes over the data in pre-training, not the same: {'; '.join(lengths)}.",)


def _pooled(suite: Suite, paper: Paper, rows: Sequence[tuple[str, Replicates]]) -> Iterator[str]:
    """Yield a line for each evaluation of which some rows read out something else than [cls]."""
    for stage in EVALUATIONS:
        name = next(iter(stage.headline), "")
        if not hasattr(stage.recipe, "pooling") or name not in paper.metrics:
            continue
        poolings = {
            label: suite.results[stage.name, key].recipe.pooling
            for label, group in rows
            for key in group.keys
            if (stage.name, key) in suite.results
        }
        means = [label for label, pooling in poolings.items() if pooling == "mean"]
        if means:
            header = paper.metrics[name].header
            others = "; of the other rows: of [cls]" if len(means) < len(poolings) else ""
            yield f"{header} of {' and '.join(means)}: of the mean of the patch tokens{others}."
