"""Experiments that differ in nothing but the pre-training seed: one row, one curve's colour."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.stages.table import EVALUATIONS
from pipeline.tables.collect import Experiment, Suite
from pipeline.tables.paper import Paper


@dataclass(frozen=True)
class Replicates:
    """Runs of one recipe with different pre-training seeds; mostly a single one."""

    label: str
    """The row's name; no two rows of a suite have the same."""
    experiments: tuple[Experiment, ...]

    @property
    def recipe(self) -> Any:
        """The pre-training recipe of the first, which stands for all but for the seed."""
        return self.experiments[0].recipe

    @property
    def row(self) -> str | None:
        """The table row that params.yaml names."""
        return self.experiments[0].row

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(experiment.key for experiment in self.experiments)


def find_replicates(suite: Suite, paper: Paper) -> list[Replicates]:
    """Return a suite's experiments as rows, in the paper's order of methods.

    Two experiments share a row when their recipes are equal but for different seeds, they name
    the same table row, and every transfer task that both ask for has equal settings but for its
    seed. Two runs with the same seed are one measurement, not two: they keep a row each.
    """
    groups: list[list[Experiment]] = []
    for experiment in suite.experiments:
        for group in groups:
            if all(_are_replicates(suite, experiment, other) for other in group):
                group.append(experiment)
                break
        else:
            groups.append([experiment])
    order = {method: place for place, method in enumerate(paper.methods)}
    groups.sort(key=lambda group: order.get(group[0].recipe.method, len(order)))
    names = [group[0].row or paper.method_label(group[0].recipe) for group in groups]
    return [
        Replicates(f"{name} [{group[0].key}]" if names.count(name) > 1 else name, tuple(group))
        for name, group in zip(names, groups, strict=True)
    ]


def experiment_labels(groups: Sequence[Replicates]) -> dict[str, str]:
    """Return experiment -> the name of its row, with the seed where the row has several."""
    return {
        experiment.key: f"{group.label}, seed {experiment.recipe.seed}"
        if len(group.experiments) > 1
        else group.label
        for group in groups
        for experiment in group.experiments
    }


def _are_replicates(suite: Suite, one: Experiment, other: Experiment) -> bool:
    if one.row != other.row or one.recipe == other.recipe:
        return False
    pairs = [(one.recipe, other.recipe)]
    for task in (stage.name for stage in EVALUATIONS):
        results = [suite.results.get((task, experiment.key)) for experiment in (one, other)]
        if results[0] and results[1]:
            pairs.append((results[0].recipe, results[1].recipe))
    return all(without_seed(a) == without_seed(b) for a, b in pairs)


def without_seed(recipe: Any) -> Any:
    """Return a recipe as it is but for the seed."""
    return dataclasses.replace(recipe, seed=0) if hasattr(recipe, "seed") else recipe
