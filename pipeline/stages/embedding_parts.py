"""Embeddings on their way: part files beside the output, from which a killed command goes on.

    FILE.parts/about.json      what is being made; another one is not mixed with it
    FILE.parts/00000256.npz    images 256 and following, whole or not there
    FILE.parts/lock            held by the process that writes

A part is always the same images in the same batches, so that a file that was resumed equals one
that was not, bit for bit.
"""

import contextlib
import fcntl
import io
import json
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from asl_core.data.sources.source import Rejected
from asl_core.transfer.embedding import Rows
from asl_core.transfer.embedding_files import Columns
from pipeline.errors import NotFinishedError, UserError
from pipeline.stages.embedding_images import ListedImage
from pipeline.writing import write_bytes, write_json

LEAST = 256
"""Images of a part, at least: a second to a minute of work."""
ABOUT, COLUMN = "about.json", "column_"


class Parts:
    """The folder of parts of one output.

    Args:
        out: The output.
    """

    def __init__(self, out: Path) -> None:
        self.folder = out.with_name(f"{out.name}.parts")

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes away.

        Raises:
            NotFinishedError: One of them writes there.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise NotFinishedError(
                    f"another process writes {self.folder}; wait for it, or give another output"
                ) from None
            yield

    def begin(self, about: Mapping[str, Any], *, force: bool) -> None:
        """Take over what an earlier start has left, if it made the same.

        Raises:
            UserError: It made something else; says what.
        """
        wanted = json.loads(json.dumps(about))
        earlier = self._read_about()
        count = sum(1 for _ in self.folder.glob("*.npz"))
        if count and earlier != wanted and not force:
            differing = ", ".join(_differences(earlier or {}, wanted))
            raise UserError(
                f"{self.folder} holds {count} part{'s' * (count != 1)} of an unfinished file with "
                f"other settings ({differing}); give the same command to go on, --force to start "
                "anew, or another output"
            )
        if earlier != wanted:
            for path in self.folder.iterdir():
                if path.name != "lock":
                    path.unlink()
            write_json(self.folder / ABOUT, wanted)

    def load(
        self, start: int, images: Sequence[ListedImage]
    ) -> tuple[Columns, list[Rejected]] | None:
        """Return the part that begins with an image; None where there is none of these files.

        A file whose time or size has changed since is read again: its content decides.
        """
        try:
            with np.load(self._path(start), allow_pickle=False) as archive:
                content = {name.removeprefix(COLUMN): archive[name] for name in archive.files}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None
        marks = content.pop("marks").tolist()
        reasons = [Rejected(*each) for each in content.pop("rejected").tolist()]
        digests = dict(zip(content["file"].tolist(), content["sha256"].tolist(), strict=True))
        for image, mark in zip(images, marks, strict=True):
            if image.mark != mark and not _is_same(image, digests.get(image.pending.name)):
                return None
        return content, reasons

    def save(self, start: int, images: Sequence[ListedImage], rows: Rows, labelled: bool) -> None:
        """Write a part, whole or not at all."""
        columns: dict[str, Any] = {**as_columns(rows, images, labelled)}
        rejected = [(each.name, each.reason) for each in rows.rejected]
        columns["marks"] = np.array([image.mark for image in images], dtype=np.str_)
        columns["rejected"] = np.array(rejected, dtype=np.str_).reshape(-1, 2)
        file = io.BytesIO()
        np.savez(file, **{f"{COLUMN}{name}": values for name, values in columns.items()})
        write_bytes(self._path(start), file.getvalue())

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, start: int) -> Path:
        return self.folder / f"{start:08d}.npz"

    def _read_about(self) -> Any:
        with contextlib.suppress(OSError, ValueError):
            return json.loads((self.folder / ABOUT).read_text())
        return None


def part_size(batch_size: int) -> int:
    """Return how many images a part has: whole batches."""
    return -(-LEAST // batch_size) * batch_size


def as_columns(rows: Rows, images: Sequence[ListedImage], labelled: bool) -> Columns:
    """Return rows as the columns of a file."""
    columns: Columns = {
        "file": np.array(rows.names, dtype=np.str_),
        "sha256": np.array(rows.sha256, dtype="<U64"),
        "height": np.array(rows.heights, dtype=np.int32),
        "width": np.array(rows.widths, dtype=np.int32),
    }
    if labelled:
        labels = {image.pending.name: image.label for image in images}
        columns["label"] = np.array([labels[name] for name in rows.names], dtype=np.int64)
    columns["embedding"] = rows.vectors.numpy()
    if rows.patches is not None:
        columns["patch_tokens"] = torch.flatten(rows.patches, 1).numpy()
    return columns


def _is_same(image: ListedImage, digest: str | None) -> bool:
    """Say whether a file that looks changed still has the content that was embedded."""
    if digest is None:
        return False
    try:
        return image.pending.read().sha256 == digest
    except (OSError, ValueError):
        return False


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """Yield in what two descriptions differ: `batch 32, now 64`."""
    for name in sorted({*old, *new}):
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            yield from _differences(before, after, f"{above}{name}.")
        elif before != after:
            long = any(len(str(each)) > 40 for each in (before, after))
            yield f"{above}{name}" if long else f"{above}{name} {before}, now {after}"
