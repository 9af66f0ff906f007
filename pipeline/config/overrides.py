"""Which settings of a section of cluster.yaml hold for a run, and in what order. Pure.

A section has `default`, stages and `experiments`. Under a stage a mapping that is no setting is of
one experiment, or of all whose names fit a pattern:

    section:
      default: {gpus: 1}
      pretrain:
        nodes: 2
        asl-vit-l: {nodes: 8}        # and asl-vit-l-seed1, ...
        mae-*: {memory: 128G}
      experiments:
        asl-vit-l: {partition: long}     # in all its stages

Later ones win: `default`, the stage, `experiments`, the stage's own experiments; of each the
patterns, then names of whom this is another seed, then the name itself.
"""

import fnmatch
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.stages.table import STAGES

DEFAULT, EXPERIMENTS = "default", "experiments"
_SEED = re.compile(r"-seed\d+$")
_WILD = re.compile(r"[*?\[]")

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Override:
    """Settings of experiments.

    Attributes:
        place: Keys that lead to them in the section: (`pretrain`, `asl-*`).
        stages: Of which they may hold.
        name: An experiment's name or a pattern; of a stage that makes datasets, of one of those.
        settings: What is set.
    """

    place: tuple[str, str]
    stages: tuple[str, ...]
    name: str
    settings: Settings

    def fits(self, key: str) -> bool:
        """Say whether they hold for a run of this key."""
        return _closeness(self.name, key) is not None


def own_settings(entry: Settings, fields: Collection[str]) -> dict[str, Any]:
    """Return what a stage's entry sets for all its runs."""
    return {name: value for name, value in entry.items() if not _is_override(name, value, fields)}


def overrides(section: Settings, fields: Collection[str]) -> Iterator[Override]:
    """Yield what a section sets for experiments: those of all stages first.

    Args:
        section: Of cluster.yaml.
        fields: Names of settings.
    """
    everywhere = tuple(stage.name for stage in STAGES.values() if _has_experiments(stage.name))
    for name, settings in section.get(EXPERIMENTS, {}).items():
        yield Override((EXPERIMENTS, name), everywhere, name, settings)
    for stage in STAGES:
        for name, settings in section.get(stage, {}).items():
            if _is_override(name, settings, fields):
                yield Override((stage, name), (stage,), name, settings)


def layers(
    section: Settings, stage: str, key: str | None, fields: Collection[str]
) -> list[Settings]:
    """Return the settings that hold for a run, the weakest first.

    Args:
        section: Of cluster.yaml.
        stage: `pretrain`.
        key: The run's; None: of no run in particular.
        fields: Names of settings.
    """
    found: list[Settings] = [section.get(DEFAULT, {}), own_settings(section.get(stage, {}), fields)]
    if key is None:
        return found
    known = [each for each in overrides(section, fields) if stage in each.stages]
    for of_all in (True, False):
        group = [each for each in known if (each.place[0] == EXPERIMENTS) is of_all]
        found += _in_order(group, key)
    return found


def merge(parts: Iterable[Settings]) -> dict[str, Any]:
    """Return settings over one another: single keys of mappings, other settings whole."""
    merged: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            both = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
            merged[name] = {**merged[name], **value} if both else value
    return merged


def _in_order(group: list[Override], key: str) -> list[Settings]:
    fitting = [(_closeness(each.name, key), each.settings) for each in group]
    close = [(rank, settings) for rank, settings in fitting if rank is not None]
    return [settings for _, settings in sorted(close, key=lambda pair: pair[0])]


def _closeness(name: str, key: str) -> int | None:
    """Return how much a name is that of a run, more for what says more; None: not at all."""
    if name == key:
        return 2
    if _WILD.search(name):
        return 0 if fnmatch.fnmatchcase(key, name) else None
    return 1 if name == _SEED.sub("", key) else None


def _is_override(name: str, value: object, fields: Collection[str]) -> bool:
    return name not in fields and isinstance(value, Mapping)


def _has_experiments(stage: str) -> bool:
    """Say whether a stage's runs are called as experiments are."""
    row = STAGES[stage]
    return row.evaluates or row.section == EXPERIMENTS
