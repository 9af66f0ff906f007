"""A part of the training split for choices, so that the official test split is read once."""

import dataclasses
from collections.abc import Iterator
from functools import partial

from asl_core.data.sources.source import Entry, Source, Split
from asl_core.errors import InputError
from asl_core.randomness import derive_seed


def hold_out(source: Source, count: int, name: str) -> Source:
    """Return the source with `count` of its training images as test split, the others to train on.

    Its own test split is not read. Which images these are depends on their number and on how many
    there are alone: the same for every method and seed.

    Args:
        source: Opened.
        count: How many.
        name: Of the dataset in the project.

    Raises:
        InputError: There are not that many.
    """
    total = source.splits["train"].count
    if count >= total:
        raise InputError(
            f"dataset {name}: selection {count} leaves nothing to train on, of {total} training "
            "images; lower it"
        )
    ranked = sorted(range(total), key=partial(derive_seed, 0, "selection"))
    chosen = frozenset(ranked[:count])
    note = f"Tested on {count} of the training images, held out for choices: no official number."
    return dataclasses.replace(
        source,
        splits={
            "train": Split(
                total - count,
                partial(_items, source, chosen, False),
                size=source.splits["train"].size,  # of both splits: they are written together
            ),
            "test": Split(count, partial(_items, source, chosen, True)),
        },
        notes=(*source.notes, note),
    )


def _items(source: Source, chosen: frozenset[int], wanted: bool) -> Iterator[Entry]:
    for position, item in enumerate(source.splits["train"].items()):
        if (position in chosen) is wanted:
            yield item
