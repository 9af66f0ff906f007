"""With which settings each number was made: what all rows share, and where they differ."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.config.canonical import as_dict
from pipeline.stages.table import MEASURED
from pipeline.tables.collect import Suite
from pipeline.tables.replicates import Replicates

ABSENT = "-"
"""Where a row's method has no such setting."""


@dataclass(frozen=True)
class Setting:
    """One field of a stage's recipes."""

    name: str
    values: Mapping[str, tuple[str, ...]]
    """Value -> the rows that have it; one value where all rows have the same."""

    @property
    def shared(self) -> bool:
        return len(self.values) == 1


@dataclass(frozen=True)
class StageSettings:
    """The settings of one stage in a suite."""

    stage: str
    settings: tuple[Setting, ...]

    @property
    def shared(self) -> list[tuple[str, str]]:
        """Name and value of what all rows share."""
        return [(each.name, next(iter(each.values))) for each in self.settings if each.shared]

    @property
    def differing(self) -> list[Setting]:
        return [each for each in self.settings if not each.shared]


def stage_settings(suite: Suite, groups: Sequence[Replicates]) -> list[StageSettings]:
    """Return the resolved settings of every stage that a suite asks for, seeds left out."""
    found = []
    for stage in (each.name for each in MEASURED):
        rows = {
            group.label: dict(flat(as_dict(suite.results[stage, key].recipe)))
            for group in groups
            for key in group.keys[:1]
            if (stage, key) in suite.results
        }
        names = dict.fromkeys(name for row in rows.values() for name in row if name != "seed")
        if names:
            found.append(StageSettings(stage, tuple(_setting(name, rows) for name in names)))
    return found


def flat(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the settings of a recipe with those inside of others as `model.depth`."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def _setting(name: str, rows: Mapping[str, Mapping[str, Any]]) -> Setting:
    values: dict[str, list[str]] = {}
    for label, row in rows.items():
        values.setdefault(str(row.get(name, ABSENT)), []).append(label)
    return Setting(name, {value: tuple(labels) for value, labels in values.items()})
