"""How long a bundle's pre-trainings may be in a given time, and the bundle at that length.

Pure. All rows get the same number of epochs: what is compared must not differ in it. The number is
a parameter, hence part of what a run is known by; a run that gets another becomes another run.
"""

import copy
import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pipeline.bundles.manifest import Manifest, RunPlan
from pipeline.errors import UserError
from pipeline.jobs.folder import PROVISIONAL
from pipeline.results.documents import recipe_id
from pipeline.stages.table import PRETRAIN

EPOCHS = "epochs"


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How fast a pre-training was in its first seconds on this machine.

    Attributes:
        name: `pretrain@mae`.
        epoch_s: Seconds of one epoch.
        around_s: Seconds that begin and end take besides.
    """

    name: str
    epoch_s: float
    around_s: float


def trainings(runs: Iterable[RunPlan]) -> list[RunPlan]:
    """Return the runs that are trained for a number of epochs before anything is evaluated."""
    return [run for run in runs if run.stage == PRETRAIN.name and EPOCHS in run.recipe]


def longest(paces: Iterable[Pace], seconds: float) -> int:
    """Return the largest number of epochs for which all rows together fit into the time.

    Args:
        paces: One for each row.
        seconds: That are left.

    Raises:
        UserError: Not one epoch fits.
    """
    each = list(paces)
    around, epoch = sum(pace.around_s for pace in each), sum(pace.epoch_s for pace in each)
    epochs = math.floor((seconds - around) / epoch)
    if epochs < 1:
        raise UserError(
            f"no epoch fits: {seconds:.0f} s are left, begin and end of {len(each)} trainings take "
            f"{around:.0f} s, an epoch of all takes {epoch:.1f} s; give it more --minutes"
        )
    return epochs


def with_epochs(manifest: Manifest, epochs: int) -> Manifest:
    """Return a bundle whose pre-trainings have so many epochs; `accept` knows it by that number.

    Args:
        manifest: As it was packed.
        epochs: Of each pre-training.
    """
    recipes: dict[str, str] = {}  # run that becomes another -> what it can be told by
    runs: list[RunPlan] = []
    for plan in manifest.runs:
        changed = plan
        if trainings([plan]):
            recipe, document = {**plan.recipe, EPOCHS: epochs}, _document(plan, epochs)
            changed = dataclasses.replace(plan, recipe=recipe, document=document)
        made = {path: recipes[maker] for path, maker in plan.makers.items() if maker in recipes}
        if changed is not plan or made:
            changed = _renamed(changed, {**plan.upstream, **made})
            recipes[plan.name] = changed.fingerprint.removeprefix(PROVISIONAL)
        runs.append(changed)
    return dataclasses.replace(manifest, runs=tuple(runs))


def _document(plan: RunPlan, epochs: int) -> dict[str, Any]:
    """Return what the run would be filed under, with the number in its parameters."""
    document = copy.deepcopy(plan.document)
    for values in document["params"].values():
        entry = values.get(f"{PRETRAIN.section}.{plan.key}")
        if isinstance(entry, dict):
            entry[EPOCHS] = epochs
    return document


def _renamed(plan: RunPlan, upstream: dict[str, str]) -> RunPlan:
    """Return a run under the name that it has now that it is another, or reads what another made.

    Names in its digests stand for inputs that are not known yet and begin with its own.
    """
    name = PROVISIONAL + recipe_id(plan.document, upstream)
    digests = {path: digest.replace(plan.fingerprint, name) for path, digest in
               plan.digests.items()}  # fmt: skip
    return dataclasses.replace(plan, fingerprint=name, upstream=upstream, digests=digests)
