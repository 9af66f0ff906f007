"""The files of a packed dataset in a second folder, as the same files where that can be."""

import dataclasses
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from asl_core.data.manifest import Manifest, read_manifest
from asl_core.data.target import written_whole


@contextmanager
def shared_images(source: Path, target: Path, name: str, notes: tuple[str, ...]) -> Iterator[None]:
    """Lay a dataset's files out in another folder; what is written inside the block joins them.

    Files are hard links, copies on another disk; packed files are only ever read. The manifest is
    the dataset's, under another name and with notes of its own, and is written last.

    Args:
        source: The packed dataset.
        target: Folder that has none.
        name: Of the new dataset.
        notes: What a reader of results should know beside the dataset's own notes.

    Raises:
        InputError: The source is no packed dataset, or `target` cannot be written or has no room.
            Packed files that were written are removed.
    """
    manifest = read_manifest(source)
    with written_whole(target, 0):
        for file in _packed_files(source, manifest):
            _link_or_copy(file, target / file.name)
        yield
        changed = dataclasses.replace(manifest, name=name, notes=(*manifest.notes, *notes))
        changed.write(target)


def _packed_files(folder: Path, manifest: Manifest) -> list[Path]:
    splits = tuple(f"{split}-" for split in manifest.counts)
    return sorted(path for path in folder.iterdir() if path.name.startswith(splits))


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:  # another disk, or one without such links
        shutil.copyfile(source, target)
