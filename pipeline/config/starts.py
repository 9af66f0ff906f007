"""Experiments that begin with the weights of another: as params.yaml has them, checked or not."""

from collections.abc import Mapping
from typing import Any, TypeVar

from pipeline.config.files import each
from pipeline.stages.table import PRETRAIN, STARTED, run_in_dvc

Entry = TypeVar("Entry")


def starts_in(raw: Mapping[str, Any]) -> dict[str, str]:
    """Return experiment -> the one whose weights it begins with."""
    found: dict[str, str] = {}
    for key, item in each(raw.get(str(PRETRAIN.section))):
        start = item.get("initialise") if isinstance(item, Mapping) else None
        source = start.get("experiment") if isinstance(start, Mapping) else None
        if isinstance(source, str):
            found[str(key)] = source
    return found


def chain(starts: Mapping[str, str], key: str) -> list[str]:
    """Return an experiment, the one it begins with, and so on; a circle is gone round once."""
    found = [key]
    while (source := starts.get(found[-1])) is not None:
        found.append(source)
        if source in found[:-1]:
            break
    return found


def by_run(recorded: Mapping[str, Entry], raw: Mapping[str, Any]) -> dict[str, Entry]:
    """Return what dvc.lock says of each run; of two entries for one run the present kind's.

    Args:
        recorded: Name in DVC -> entry.
        raw: Content of params.yaml.
    """
    started = starts_in(raw)
    found: dict[str, Entry] = {}
    for name, entry in recorded.items():
        run = run_in_dvc(name)
        stage, _, key = name.partition("@")
        if stage in (PRETRAIN.name, STARTED) and (stage == STARTED) != (key in started):
            continue
        found[run] = entry
    return found
