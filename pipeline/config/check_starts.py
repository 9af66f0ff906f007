"""Whether the weights that experiments begin with can be what they are said to be."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from asl_core.recipes.imported import ENCODER_FIELDS
from asl_core.recipes.models import PLAIN
from asl_core.recipes.pretraining import Pretraining
from pipeline.config.starts import chain
from pipeline.config.suggest import unknown_name


def problems_of_starts(experiments: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield experiment, field of its `initialise`, and what is wrong with it."""
    starts = {
        key: item.initialise.experiment
        for key, item in experiments.items()
        if isinstance(item, Pretraining)
        and item.initialise is not None
        and item.initialise.experiment is not None
    }
    for key, source in starts.items():
        problem = _problem(experiments, starts, key, source)
        if problem is not None:
            yield key, *problem


def _problem(
    experiments: Mapping[str, Any], starts: Mapping[str, str], key: str, source: str
) -> tuple[str, str] | None:
    if source == key:
        return "experiment", "cannot begin with what it ends with; name another experiment"
    if source not in experiments:
        return "experiment", unknown_name("experiment", source, experiments)
    followed = chain(starts, key)
    if followed[-1] == key:
        return "experiment", f"goes round in a circle: {' from '.join(followed)}; break it"
    own, other = experiments[key], experiments[source]
    if own.initialise.whole:
        if other.method != own.method:
            return "whole", (
                f"got {other.method} of {source}, expected {own.method}: decoder, heads and "
                "teacher are a method's own; remove whole"
            )
        fields = [field.name for field in dataclasses.fields(own.model)]
    else:
        fields = [name for name in ENCODER_FIELDS if name not in ("image_size", "layer_scale")]
    for name in fields:
        mine, theirs = getattr(own.model, name), getattr(other.model, name)
        if mine != theirs:
            return "experiment", (
                f"{source} has {name} {theirs}, this experiment {mine}; give both the same model"
            )
    for what, mine, theirs in zip(_PARTS, _parts(own), _parts(other), strict=True):
        if mine != theirs:
            return "experiment", (
                f"{what} {'are' if theirs else 'are not'} part of {source}'s encoder, and "
                f"{'are' if mine else 'are not'} of this one; choose a method with the same encoder"
            )
    return None


_PARTS = ("factors of LayerScale", "biases of keys", "relative positions")


def _parts(recipe: Any) -> tuple[bool, bool, bool]:
    parts = getattr(recipe, "encoder_parts", PLAIN)
    scaled = parts.layer_scale is not None or recipe.model.layer_scale is not None
    return scaled, parts.key_bias, parts.relative_positions
