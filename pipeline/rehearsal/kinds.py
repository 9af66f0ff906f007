"""Which runs of a suite take the same time: they are tried once."""

import dataclasses
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from asl_core.recipes.tokenized import TokenPretraining
from pipeline.config.params import Params
from pipeline.stages.table import MEASURED, PREPARE, PRETRAIN, TOKENIZE, Stage


@dataclass(frozen=True)
class Kind:
    """Runs that take the same: they differ by their seeds, or by whose encoder they measure.

    Attributes:
        stage: Of all of them.
        key: Of the first.
        recipe: Likewise.
        names: All of them.
    """

    stage: Stage
    key: str
    recipe: Any
    names: tuple[str, ...]


def kinds_of(params: Params) -> Iterator[Kind]:
    """Yield the kinds of runs of a suite, those first that others need."""
    found: dict[str, Kind] = {}
    for stage in (PREPARE, TOKENIZE, *MEASURED):
        for key, recipe in params.section(stage.name).items():
            text = f"{stage.name} {_alike(params, stage, key, recipe)}"
            names = found[text].names if text in found else ()
            name = stage.run_name(key)
            found[text] = (
                dataclasses.replace(found[text], names=(*names, name))
                if text in found
                else Kind(stage, key, recipe, (name,))
            )
    yield from found.values()


def settings_of(params: Params) -> dict[str, str]:
    """Return a digest of what makes each run take the time that it takes, by the run's name."""
    return {
        stage.run_name(key): hashlib.sha256(
            f"{_alike(params, stage, key, recipe)} {recipe!r}".encode()
            if stage in (PREPARE, TOKENIZE)
            else _alike(params, stage, key, recipe).encode()
        ).hexdigest()
        for stage in (PREPARE, TOKENIZE, *MEASURED)
        for key, recipe in params.section(stage.name).items()
    }


def _alike(params: Params, stage: Stage, key: str, recipe: Any) -> str:
    """Return what makes runs take the same time, as text."""
    if stage in (PREPARE, TOKENIZE):
        return key
    seedless = dataclasses.replace(recipe, seed=0) if hasattr(recipe, "seed") else recipe
    if not stage.evaluates:
        start = getattr(recipe, "initialise", None)
        if start is not None and start.experiment is not None:  # takes no time worth the name
            seedless = dataclasses.replace(seedless, initialise=None)
        return repr(seedless)
    experiment: Any = params.experiments[key]
    own_kind = experiment.method if isinstance(experiment, TokenPretraining) else ""
    return f"{seedless!r} {experiment.model!r} {own_kind}"


def trains(kind: Kind) -> bool:
    """Return whether runs go through images by steps; heads on stored features do not."""
    return kind.stage.trains and not (
        kind.stage.reads_features and not getattr(kind.recipe, "augment", True)
    )


def smallest_batch(recipe: Any) -> int:
    """Return the fewest images that a method can do a step with."""
    couples = 2 if getattr(recipe, "couples_images", False) else 1
    mixes = 2 if hasattr(recipe, "mixup") else 1
    return max(couples, mixes, getattr(recipe, "forward_multiple", 1))


def needed_for(params: Params, kinds: list[Kind], only: str) -> list[Kind]:
    """Return the kinds of one stage, and of all that it reads from."""
    wanted = [kind for kind in kinds if kind.stage.name == only]
    names = {name for kind in wanted for name in kind.names}
    keys = {name.partition("@")[2] for name in names}
    datasets = {kind.recipe.dataset for kind in wanted if hasattr(kind.recipe, "dataset")}
    if any(kind.stage.evaluates for kind in wanted):
        names |= {PRETRAIN.run_name(key) for key in keys}
        datasets |= {params.experiments[key].dataset for key in keys}
    datasets |= {params.tokenizers[key].dataset for key in datasets & params.tokenizers.keys()}
    names |= {stage.run_name(key) for stage in (PREPARE, TOKENIZE) for key in datasets}
    return [kind for kind in kinds if names & set(kind.names)] if wanted else []
