"""Two experiments side by side: which settings differ, and by how much their numbers do."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.config.canonical import as_dict
from pipeline.config.suggest import unknown_name
from pipeline.errors import UserError
from pipeline.stages.table import MEASURED
from pipeline.tables.collect import StageResult, Suite

ABSENT = "-"


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

    @property
    def difference(self) -> float | None:
        """The second minus the first."""
        first, second = self.values
        return None if first is None or second is None else second - first


@dataclass(frozen=True)
class Comparison:
    """What two experiments differ in.

    Attributes:
        differences: Settings, stage by stage, in the order of their names.
        pairs: Numbers, in the order of the metrics files.
        states: Stage -> states of both results; only where one is not current.
    """

    differences: tuple[Difference, ...]
    pairs: tuple[Pair, ...]
    states: Mapping[str, tuple[str, str]]


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
    pairs, states = [], {}
    for stage in (each.name for each in MEASURED):
        one, other = (suite.results.get((stage, name)) for suite, name in (first, second))
        if one is None and other is None:
            continue
        differences += _differences(stage, one, other)
        pairs += _pairs(stage, one, other)
        both = (_state(one), _state(other))
        if both != ("current", "current"):
            states[stage] = both
    return Comparison(tuple(differences), tuple(pairs), states)


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
    return ABSENT if result is None else result.state


def _differences(
    stage: str, one: StageResult | None, other: StageResult | None
) -> Iterator[Difference]:
    if one is None or other is None:
        return  # a stage that one side does not have differs in everything: its state says so
    settings = [dict(_flat(as_dict(result.recipe))) for result in (one, other)]
    for name in sorted(settings[0].keys() | settings[1].keys()):
        values = tuple(str(side.get(name, ABSENT)) for side in settings)
        if values[0] != values[1]:
            yield Difference(stage, name, (values[0], values[1]))


def _flat(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def _pairs(stage: str, one: StageResult | None, other: StageResult | None) -> Iterator[Pair]:
    numbers = [{} if result is None else result.metrics for result in (one, other)]
    for name in dict.fromkeys([*numbers[0], *numbers[1]]):
        yield Pair(stage, name, (numbers[0].get(name), numbers[1].get(name)))
