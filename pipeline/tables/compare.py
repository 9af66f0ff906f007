"""Two experiments side by side: which settings differ, and by how much their numbers do."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pipeline.config.canonical import as_dict
from pipeline.config.suggest import unknown_name
from pipeline.errors import UserError
from pipeline.stages.table import MEASURED
from pipeline.tables.collect import StageResult, Suite, doubts
from pipeline.tables.paper import Metric, load_paper
from pipeline.tables.settings import ABSENT, flat
from pipeline.tables.uncertainty import standard_error


@dataclass(frozen=True)
class Difference:
    """A setting that is not the same; `-` where one side does not have it."""

    stage: str
    setting: str
    values: tuple[str, str]


@dataclass(frozen=True)
class Pair:
    """A number that both have, or one of them."""

    stage: str
    metric: str
    values: tuple[float | None, float | None]
    errors: tuple[float | None, float | None] = (None, None)
    """Standard error of each over the choice of test images, where it is known."""
    differing: tuple[bool, bool] = (False, False)
    """Whether each comes from a file that is not the one that dvc.lock records."""

    @property
    def difference(self) -> float | None:
        """The second minus the first."""
        first, second = self.values
        return None if first is None or second is None else second - first

    @property
    def error(self) -> float | None:
        """Standard error of the difference, as if both had been measured on different images."""
        first, second = self.errors
        return None if first is None or second is None else math.hypot(first, second)


@dataclass(frozen=True)
class Comparison:
    """What two experiments differ in.

    Attributes:
        differences: Settings, stage by stage, in the order of their names.
        pairs: Numbers, in the order of the metrics files.
        states: Stage -> states of both results; only where one is not current.
        doubts: A line for each reason why not all numbers are those of dvc.lock.
    """

    differences: tuple[Difference, ...]
    pairs: tuple[Pair, ...]
    states: Mapping[str, tuple[str, str]]
    doubts: Sequence[str] = ()


Side = tuple[Suite, str]
"""A suite and the name of one of its experiments."""


def compare(first: Side, second: Side) -> Comparison:
    """Put two experiments, of one suite or of two, side by side.

    Raises:
        UserError: A suite has no such experiment.
    """
    for suite, name in (first, second):
        keys = [experiment.key for experiment in suite.experiments]
        if name not in keys:
            raise UserError(unknown_name(f"experiment of suite {suite.name}:", name, keys))
    differences: list[Difference] = [*_of_suites(first, second)]
    pairs, states, results = [], {}, []
    for stage in (each.name for each in MEASURED):
        one, other = (suite.results.get((stage, name)) for suite, name in (first, second))
        if one is None and other is None:
            continue
        results += filter(None, (one, other))
        differences += _differences(stage, one, other)
        pairs += _pairs(stage, one, other)
        both = (_state(one), _state(other))
        if both != ("current", "current"):
            states[stage] = both
    return Comparison(tuple(differences), tuple(pairs), states, doubts(results))


def _of_suites(first: Side, second: Side) -> Iterator[Difference]:
    """Yield what two suites may have under one name: their scale, their prepared datasets."""
    (one, name), (other, other_name) = first, second
    if one.scale != other.scale:
        yield Difference("suite", "scale", (one.scale, other.scale))
    for stage in (each.name for each in MEASURED):
        digests = (_digest(one, stage, name), _digest(other, stage, other_name))
        if ABSENT not in digests and digests[0] != digests[1]:
            yield Difference(stage, "dataset's content", digests)


def _digest(suite: Suite, stage: str, name: str) -> str:
    """Return the beginning of the digest of a stage's training data, `-` where it has none."""
    result = suite.results.get((stage, name))
    dataset = str(getattr(result.recipe, "dataset", "")) if result else ""
    if not dataset:
        return ABSENT
    manifest = suite.datasets.get(dataset)
    return "not prepared" if manifest is None else manifest.digests.get("train", "")[:12]


def _state(result: StageResult | None) -> str:
    if result is None:
        return ABSENT
    return "in doubt" if result.difference else result.state


def _differences(
    stage: str, one: StageResult | None, other: StageResult | None
) -> Iterator[Difference]:
    if one is None or other is None:
        return  # a stage that one side does not have differs in everything: its state says so
    settings = [dict(flat(as_dict(result.recipe))) for result in (one, other)]
    for name in sorted(settings[0].keys() | settings[1].keys()):
        values = tuple(str(side.get(name, ABSENT)) for side in settings)
        if values[0] != values[1]:
            yield Difference(stage, name, (values[0], values[1]))


def _pairs(stage: str, one: StageResult | None, other: StageResult | None) -> Iterator[Pair]:
    metrics = load_paper().metrics
    names = dict.fromkeys(name for result in (one, other) if result for name in result.metrics)
    for name in names:
        yield Pair(
            stage,
            name,
            (_value(one, name), _value(other, name)),
            (_error(one, name, metrics), _error(other, name, metrics)),
            (_differs(one), _differs(other)),
        )


def _value(result: StageResult | None, name: str) -> float | None:
    return result.metrics.get(name) if result else None


def _error(result: StageResult | None, name: str, metrics: Mapping[str, Metric]) -> float | None:
    if result is None or name not in metrics:
        return None
    return standard_error(metrics[name], name, result)


def _differs(result: StageResult | None) -> bool:
    return bool(result and result.difference)
