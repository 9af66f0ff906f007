"""Several sources as one."""

import dataclasses
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from asl_core.data.sources.catalogue import open_source
from asl_core.data.sources.source import (
    SPLITS,
    Entry,
    Item,
    Rejected,
    Source,
    Split,
    SplitName,
    Unread,
)
from asl_core.recipes.datasets import Union_


def open_union(recipe: Union_, data_root: Path) -> Source:
    """Return the members one after the other, train with train and test with test.

    Labels, instances and semantic maps survive only where all members have the same classes.
    Images are numbered anew, since the members' own numbers may clash.

    Raises:
        InputError: What a member names is missing or broken.
    """
    members = {
        f"{number}-{member.source}": open_source(member, data_root)
        for number, member in enumerate(recipe.members)
    }
    sources = list(members.values())
    classes = _common([source.classes for source in sources])
    things = _common([source.thing_classes for source in sources])
    semantic = _common([source.semantic_classes for source in sources])
    dropped = {
        "label": classes is None,
        "instances": things is None,
        "semantic": semantic is None,
    }
    blank = {name: None for name, drop in dropped.items() if drop}
    return Source(
        splits={
            split: Split(
                sum(source.splits[split].count for source in sources),
                partial(_items, members, split, blank),
                rejected=tuple(
                    _renamed(name, entry)
                    for name, source in members.items()
                    for entry in source.splits[split].rejected
                ),
                size=sum(source.splits[split].size for source in sources),
            )
            for split in SPLITS
        },
        licence="; ".join(f"{name}: {source.licence}" for name, source in members.items()),
        classes=classes,
        thing_classes=things,
        semantic_classes=semantic,
        notes=(
            *(f"{name}: {note}" for name, source in members.items() for note in source.notes),
            *_dropped_notes(sources, dropped),
        ),
    )


def _common(names: list[tuple[str, ...] | None]) -> tuple[str, ...] | None:
    return names[0] if all(each == names[0] for each in names) else None


def _dropped_notes(sources: list[Source], dropped: dict[str, bool]) -> list[str]:
    """Say what was dropped although every member has it."""
    names = {
        "label": ("Labels", [source.classes for source in sources]),
        "instances": ("Objects", [source.thing_classes for source in sources]),
        "semantic": ("Semantic maps", [source.semantic_classes for source in sources]),
    }
    return [
        f"{what} are not kept: the members' classes, or their order, are not the same."
        for field, (what, classes) in names.items()
        if dropped[field] and None not in classes
    ]


def _items(members: dict[str, Source], split: SplitName, blank: dict[str, None]) -> Iterator[Entry]:
    number = 0
    for name, source in members.items():
        for entry in source.splits[split].items():
            changes = {"image_id": number, **blank}
            if isinstance(entry, Unread):
                read = partial(_read, name, entry, changes)
                yield Unread(f"{name}/{entry.name}", read)
            else:
                yield _changed(name, entry, changes)
            number += 1


def _read(member: str, entry: Unread, changes: dict[str, Any]) -> Item | Rejected:
    return _changed(member, entry.read(), changes)


def _changed(member: str, entry: Item | Rejected, changes: dict[str, Any]) -> Item | Rejected:
    if isinstance(entry, Rejected):
        return _renamed(member, entry)
    return dataclasses.replace(entry, name=f"{member}/{entry.name}", **changes)


def _renamed(member: str, entry: Rejected) -> Rejected:
    return dataclasses.replace(entry, name=f"{member}/{entry.name}")
