"""What went wrong in pre-training, in words: a collapsed branch, and what was watched besides.

Whether the second branch of an ASL run has collapsed into the first is told by their distance.
AEE's alignment loss has a trivial minimum, the extra layer as identity; then |fea_aug - fea_ori|
over |fea_ori| goes to 0. DLE has noise in both branches and no such layer; there a ratio near 0
says that the encoder lets no trace of the dropout through. Above that the two designs' ratios do
not compare with each other.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from asl_core.analysis import watched
from pipeline.rounding import fixed, significant
from pipeline.tables.collect import Suite
from pipeline.tables.cost import flops_ratio
from pipeline.tables.replicates import Replicates

COLLAPSED_BELOW = 0.01
"""Of the norm of fea_ori. bfloat16 keeps 8 bits, so the features alone are rounded by up to 0.004
of their size: below 0.01 the branches differ by little more than that, and the decoder cannot be
said to see two inputs. The demo's runs end between 0.05 (DLE) and 0.8 (AEE); the dropout of DLE, at
its rate of 0.1, moves the two branches' embeddings apart by 0.47 of their norm."""

DISTANCE = "pretrain/branch_distance"

_MEANING = {
    "aee": "the extra layer has become the identity: this run is MAE at {cost} times the cost",
    "dle": "the encoder removes every trace of the dropout, so both branches are the same: this "
    "run is MAE at {cost} times the cost",
}
_COST_AT_VIT_B = {"aee": "1.6", "dle": "2.0"}  # docs/reference.md; where a suite has not counted


@dataclass(frozen=True)
class Branch:
    """The second branch of one run, at the end of pre-training."""

    label: str
    """Of the row that the run belongs to."""
    key: str
    design: str
    distance: float
    """|fea_aug - fea_ori| / |fea_ori|, the mean over the batches of the last line logged."""
    cost: str
    """Of the run, as a multiple of MAE's."""

    @property
    def collapsed(self) -> bool:
        return self.distance < COLLAPSED_BELOW

    @property
    def warning(self) -> str:
        """What a collapse means, with the run and its number."""
        meaning = _MEANING[self.design].format(cost=self.cost)
        return (
            f"Collapsed branch: {self.label}, experiment {self.key}: "
            "|fea_aug - fea_ori| / |fea_ori| is "
            f"{significant(self.distance, 2)} at the end of pre-training, "
            f"below {COLLAPSED_BELOW:g}; {meaning}."
        )


def find_branches(suite: Suite, groups: Sequence[Replicates]) -> list[Branch]:
    """Return the second branch of every ASL run that has logged its distance."""
    found = []
    for group in groups:
        for experiment in group.experiments:
            result = suite.results.get(("pretrain", experiment.key))
            distance = result.metrics.get(DISTANCE) if result else None
            design = getattr(experiment.recipe, "design", None)
            if distance is None or design not in _MEANING or _is_silent(experiment.recipe):
                continue
            ratio = flops_ratio(suite, experiment.key, experiment.recipe)
            cost = _COST_AT_VIT_B[design] if ratio is None else fixed(ratio, 1)
            found.append(Branch(group.label, experiment.key, design, distance, cost))
    return found


def watched_remark(branches: Sequence[Branch]) -> tuple[str, ...]:
    """Return one line that says which branches were watched and have not collapsed."""
    fine: dict[str, list[str]] = {}
    for branch in branches:
        if not branch.collapsed:
            fine.setdefault(branch.label, []).append(significant(branch.distance, 2))
    if not fine:
        return ()
    rows = "; ".join(f"{label} {', '.join(distances)}" for label, distances in fine.items())
    return (
        "Watched for collapse, |fea_aug - fea_ori| / |fea_ori| at the end of pre-training "
        f"(collapsed below {COLLAPSED_BELOW:g}): {rows}.",
    )


def watched_warnings(suite: Suite, groups: Sequence[Replicates]) -> Iterator[str]:
    """Yield what the last snapshot of each pre-training says against it."""
    for group in groups:
        for experiment in group.experiments:
            result = suite.results.get(("pretrain", experiment.key))
            for sign in watched.find_signs(result.metrics) if result else ():
                if sign.what != watched.COLLAPSED or not _is_silent(experiment.recipe):
                    what = sign.what[0].upper() + sign.what[1:]
                    yield f"{what}: {group.label}, experiment {experiment.key}: {sign.numbers}."


def _is_silent(recipe: Any) -> bool:
    """Say whether DLE's dropout is off: that is MAE, and meant to be."""
    return getattr(recipe, "design", None) == "dle" and recipe.dle_rate == 0
