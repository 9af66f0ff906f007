"""A sweep's runs beside each other, ranked by one metric that no test image has part in.

A row for each combination of the swept values, with the mean over its seeds. The standard error is
that of the mean over seeds where there are several, and that over the choice of images held out
where there is one. Runs that were stopped before their end (pipeline/jobs/halving.py) have none:
they are told apart from those that are missing, and stand behind those that went on.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from asl_core.analysis import watched
from asl_core.wording import counted
from pipeline.config.held_out import HeldOut, metric_of
from pipeline.config.suggest import unknown_name
from pipeline.errors import UserError
from pipeline.jobs.halving import rungs_of
from pipeline.project import Project
from pipeline.stages.table import PRETRAIN
from pipeline.tables.collect import StageResult, Suite
from pipeline.tables.floor import floor_runs


@dataclass(frozen=True)
class Candidate:
    """One combination of the swept values.

    Attributes:
        keys: Experiments, one for each seed; the first names it.
        values: Swept field -> value.
        runs: Of the metric's stage, one for each experiment.
        numbers: What each of them measured; None where there is no number.
        errors: Standard error of each over the choice of images; None where it is not known.
        floor: A random encoder's number under the same evaluation; None where there is none.
        stopped: Experiment that was stopped before its end -> when, and on what number.
    """

    keys: tuple[str, ...]
    values: Mapping[str, Any]
    runs: tuple[StageResult, ...]
    numbers: tuple[float | None, ...]
    errors: tuple[float | None, ...]
    floor: float | None
    stopped: Mapping[str, str]

    @property
    def name(self) -> str:
        return self.keys[0]

    @property
    def measured(self) -> tuple[float, ...]:
        """The numbers that exist."""
        return tuple(number for number in self.numbers if number is not None)

    @property
    def value(self) -> float | None:
        """The mean over the seeds that have a number."""
        return fmean(self.measured) if self.measured else None

    @property
    def error(self) -> float | None:
        """The standard error of `value`; None where it is not known."""
        if len(self.measured) > 1:
            return stdev(self.measured) / math.sqrt(len(self.measured))
        known = [error for error in self.errors if error is not None]
        return known[0] if known else None

    @property
    def missing(self) -> tuple[StageResult, ...]:
        """The runs without a number that were not stopped."""
        pairs = zip(self.runs, self.numbers, strict=True)
        return tuple(r for r, number in pairs if number is None and r.key not in self.stopped)


@dataclass(frozen=True)
class SweepTable:
    """A sweep's candidates, the best first, those with a stopped seed and without a number last.

    Attributes:
        experiment: As suite.yaml has it.
        metric: By which they are ranked.
        fields: The swept ones.
        candidates: At least one.
        notes: What a reader must know.
    """

    experiment: str
    metric: HeldOut
    fields: tuple[str, ...]
    candidates: tuple[Candidate, ...]
    notes: tuple[str, ...]

    @property
    def ranked(self) -> tuple[Candidate, ...]:
        """The candidates that have a number."""
        return tuple(each for each in self.candidates if each.value is not None)

    @property
    def varied(self) -> tuple[str, ...]:
        """The fields that have more than one value."""
        return tuple(
            name for name in self.fields
            if len({repr(each.values[name]) for each in self.candidates}) > 1
        )  # fmt: skip

    @property
    def missing(self) -> tuple[StageResult, ...]:
        """The runs without a number that were not stopped."""
        return tuple(run for each in self.candidates for run in each.missing)

    @property
    def results(self) -> tuple[StageResult, ...]:
        """All runs."""
        return tuple(run for each in self.candidates for run in each.runs)


def sweep_tables(suite: Suite, experiment: str | None = None) -> list[SweepTable]:
    """Return the tables of a suite's sweeps, or of that of one experiment.

    Raises:
        UserError: There is no such sweep, or none at all.
    """
    if not suite.sweeps:
        raise UserError(
            f"suite {suite.name} has no sweep; write one into its suite.yaml, for instance "
            "sweep: {lr: [1.0e-3, 2.0e-3]} in an experiment"
        )
    if experiment is not None and experiment not in suite.sweeps:
        raise UserError(unknown_name("sweep", experiment, suite.sweeps))
    wanted = suite.sweeps if experiment is None else [experiment]
    return [_table(suite, key) for key in wanted]


def difference(one: Candidate, other: Candidate) -> tuple[float, float | None]:
    """Return how much one is above the other, and the standard error of that where it is known."""
    assert one.value is not None
    assert other.value is not None
    known = None not in (one.error, other.error)
    error = math.hypot(one.error or 0.0, other.error or 0.0) if known else None
    return one.value - other.value, error


def _table(suite: Suite, key: str) -> SweepTable:
    sweep = suite.sweeps[key]
    try:
        metric = metric_of(sweep.metric)
    except ValueError as error:
        raise UserError(
            f"{suite.folder}/params.yaml: sweeps.{key}.metric: {error}; run asl-pipe expand"
        ) from None
    groups: dict[str, tuple[Mapping[str, Any], list[str]]] = {}
    for run, values in sweep.runs.items():
        groups.setdefault(repr(sorted(values.items())), (values, []))[1].append(run)
    candidates = [_candidate(suite, metric, values, runs) for values, runs in groups.values()]
    candidates.sort(key=_rank)
    fields = dict.fromkeys(name for values in sweep.runs.values() for name in values)
    return SweepTable(
        experiment=key, metric=metric, fields=tuple(fields), candidates=tuple(candidates),
        notes=tuple(_notes(suite, metric, candidates)),
    )  # fmt: skip


def _rank(each: Candidate) -> tuple[bool, float]:
    return bool(each.stopped), math.inf if each.value is None else -each.value


def _stopped(
    suite: Suite, keys: Sequence[str], numbers: Sequence[float | None]
) -> Iterator[tuple[str, str]]:
    """Yield the experiments without a number that were stopped, and on what."""
    scratch = Project(suite.root, suite.folder).scratch
    recipes = {each.key: each.recipe for each in suite.experiments}
    for key, number in zip(keys, numbers, strict=True):
        rungs = rungs_of(scratch, suite.name, suite.sweeps, key, recipes[key])
        made = suite.results[PRETRAIN.name, key].state != "missing"
        mark = None if rungs is None or number is not None or made else rungs.stopped()
        if rungs is not None and mark is not None:
            yield key, mark.text(rungs.halving.metric)


def _candidate(
    suite: Suite, metric: HeldOut, values: Mapping[str, Any], keys: Sequence[str]
) -> Candidate:
    runs = tuple(
        suite.results[metric.stage, key] for key in keys if (metric.stage, key) in suite.results
    )
    if not runs:
        raise UserError(
            f"{suite.folder}/params.yaml: sweeps: {metric.name} of {keys[0]} is not measured; add "
            f"{metric.stage}.{keys[0]}"
        )
    numbers = tuple(run.metrics.get(metric.name) for run in runs)
    return Candidate(
        keys=tuple(keys), values=values, runs=runs, numbers=numbers,
        errors=tuple(_error(suite, metric, run) for run in runs),
        floor=_floor(suite, metric, keys[0], runs),
        stopped=dict(_stopped(suite, [run.key for run in runs], numbers)),
    )  # fmt: skip


def _error(suite: Suite, metric: HeldOut, run: StageResult) -> float | None:
    """Return the standard error of a share of so many images, in percent."""
    value, images = run.metrics.get(metric.name), _images(suite, metric, run)
    if value is None or not images or not 0 < value < 100:
        return None
    if metric.on_test and metric.name not in _SHARES:
        return None
    return math.sqrt(value * (100 - value) / images)


_SHARES = ("lp_acc1", "knn_acc1", "attentive_acc1", "ft_acc1")
"""Metrics on test images that are shares of them."""


def _images(suite: Suite, metric: HeldOut, run: StageResult) -> float | None:
    """Return on how many images a run was measured, where that is known."""
    if metric.on_test:
        return run.test_images
    if metric.stage == PRETRAIN.name:
        return run.metrics.get(watched.QUERIES)
    manifest = suite.datasets.get(run.recipe.dataset)
    return manifest and round(run.recipe.held_out * manifest.counts["train"])


def _floor(suite: Suite, metric: HeldOut, key: str, runs: Sequence[StageResult]) -> float | None:
    if metric.stage == PRETRAIN.name:
        own = [run.metrics.get(metric.name + watched.UNTRAINED) for run in runs]
        found = [[number for number in own if number is not None]]
    else:
        recipe = next(each.recipe for each in suite.experiments if each.key == key)
        found = [
            [run.metrics[metric.name] for run in seeds if metric.name in run.metrics]
            for seeds in floor_runs(suite, recipe, runs)
        ]
    return max((fmean(numbers) for numbers in found if numbers), default=None)


def _notes(suite: Suite, metric: HeldOut, candidates: Sequence[Candidate]) -> list[str]:
    images = sorted({
        round(count) for each in candidates for run in each.runs
        if run.metrics.get(metric.name) is not None
        and (count := _images(suite, metric, run)) is not None
    })  # fmt: skip
    # a probe holds a share of each class out, rounded
    about = "" if metric.on_test or metric.stage == PRETRAIN.name else "about "
    many = f" ({about}{' or '.join(f'{count:,}' for count in images[:3])} images)" if images else ""
    where = (
        "the images of the dataset's selection" if metric.on_test else "training images held out"
    )
    found = [
        f"Ranked by {metric.name} of {metric.stage}, on {where}{many}; no test image has part in "
        "the order.",
        "Standard error: of the mean over seeds where there are several, of one over the choice of "
        "images. The best of many is a little better by luck than it is.",
    ]
    if len(images) > 1 and metric.stage == PRETRAIN.name:
        found.append("Longer runs are watched on more images; fewer are the first of them.")
    recipes = {each.key: each.recipe for each in suite.experiments}
    if any(recipes[each.name].method == "supervised" for each in candidates):
        found.append("supervised was trained with the classes of these images: they are not new.")
    stopped = [text for each in candidates for text in each.stopped.items()]
    if stopped:
        found.append(
            f"{counted(len(stopped), 'run')} stopped before the end, without a result; which ones "
            "depends on the order in which runs came."
        )
        found += [f"{key}: {text}." for key, text in stopped]
    if metric.on_test is False and all(each.floor is None for each in candidates):
        found.append(
            "No untrained number under the same evaluation: nothing says what a floor has."
        )
    return found
