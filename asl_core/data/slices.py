"""The first images of a dataset as a dataset of their own, for trying things out."""

import dataclasses
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asl_core.data import layout
from asl_core.data.manifest import FILE_NAME, read_manifest
from asl_core.data.sources.source import SPLITS, Source, Split

Counts = dict[str, int]
"""Images by split."""


def beginning_of_source(source: Source, counts: Counts) -> Source:
    """Return a source of the first images of each split."""
    return dataclasses.replace(
        source,
        splits={
            name: _beginning(split, min(counts[name], split.count))
            for name, split in source.splits.items()
        },
    )


def _beginning(split: Split, count: int) -> Split:
    size = split.size * count // max(split.count, 1)
    return dataclasses.replace(
        split, count=count, items=lambda: islice(split.items(), count), size=size, rejected=()
    )


def slice_packed(folder: Path, target: Path, counts: Counts) -> None:
    """Make a dataset of the first images of a packed one; images are linked to, not copied.

    Args:
        folder: A packed dataset.
        target: To be made; the links in it end where the dataset is removed.
        counts: How many images of each split, at most.

    Raises:
        InputError: The folder is no packed dataset.
    """
    manifest = read_manifest(folder)
    target.mkdir(parents=True)
    kept: Counts = {}
    annotated: Counts = {}
    written = {FILE_NAME}
    for split in SPLITS:
        index = _read(folder / layout.INDEX.format(split=split))
        count = kept[split] = min(counts[split], len(index["label"]))
        rows = {name: column[:count] for name, column in index.items()}
        annotated[split] = int(rows["annotated"].sum())
        _write(target, layout.INDEX.format(split=split), rows, written)
        instances = folder / layout.INSTANCES.format(split=split)
        if instances.exists():
            _write(target, instances.name, _first_instances(_read(instances), count), written)
        regions = folder / layout.REGIONS.format(split=split)
        if regions.exists():
            columns = {"first": _read(regions)["first"][: count + 1]}
            _write(target, regions.name, columns, written)
    for path in folder.iterdir():
        if path.is_file() and path.name not in written:
            (target / path.name).symlink_to(path.resolve())
    dataclasses.replace(manifest, counts=kept, annotated=annotated).write(target)


def _first_instances(columns: dict[str, NDArray[Any]], images: int) -> dict[str, NDArray[Any]]:
    first = columns["first"][: images + 1]
    last = int(first[-1])
    per_object = {n: c[:last] for n, c in columns.items() if n not in ("first", "code_offset")}
    return {"first": first, "code_offset": columns["code_offset"][: last + 1], **per_object}


def _read(path: Path) -> dict[str, NDArray[Any]]:
    with np.load(path) as archive:
        return dict(archive)


def _write(target: Path, name: str, columns: dict[str, NDArray[Any]], written: set[str]) -> None:
    np.savez(target / name, **columns)  # type: ignore[arg-type]  # as in asl_core.data.packing
    written.add(name)
