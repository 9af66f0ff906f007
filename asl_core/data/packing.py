"""Writing a split of a packed dataset."""

import dataclasses
import hashlib
import io
import tarfile
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np

from asl_core.data import layout
from asl_core.data.sources.source import EncodedInstances, Item

SHARD_BYTES = 2**30  # few enough files for any file system, small enough to copy one by one

_NO_INSTANCES = EncodedInstances(
    boxes=np.zeros((0, 4)),
    labels=np.zeros(0, dtype=np.int64),
    areas=np.zeros(0),
    crowd=np.zeros(0, dtype=bool),
    codes=(),
)


@dataclass
class _Rows:
    """Columns of the index; offsets are of the bytes themselves, past the tar header."""

    shard: list[int] = field(default_factory=list)
    offset: list[int] = field(default_factory=list)
    size: list[int] = field(default_factory=list)
    semantic_offset: list[int] = field(default_factory=list)
    semantic_size: list[int] = field(default_factory=list)
    label: list[int] = field(default_factory=list)
    height: list[int] = field(default_factory=list)
    width: list[int] = field(default_factory=list)
    image_id: list[int] = field(default_factory=list)
    annotated: list[int] = field(default_factory=list)


class SplitWriter:
    """Writes items one after the other; `finish` writes the index.

    Equal items give equal bytes: tar headers carry no time and no user, and the index is
    uncompressed.

    Args:
        folder: Where the files go.
        split: "train" or "test".
        with_instances: Whether the source has instances.
        with_regions: Whether each image comes with maps of regions.
        shard_bytes: A shard is closed when it has grown to this size.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        *,
        with_instances: bool,
        with_regions: bool = False,
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        self._folder, self._split, self._shard_bytes = folder, split, shard_bytes
        self._rows = _Rows()
        self._digest = hashlib.sha256()
        self._shard: tarfile.TarFile | None = None
        self._shard_number = -1
        self._instances: list[EncodedInstances] | None = [] if with_instances else None
        self._code_lengths: list[list[int]] = []  # by image
        self._masks = (
            (folder / layout.MASKS.format(split=split)).open("wb") if with_instances else None
        )
        self._polygon_lengths: list[list[int]] = []  # by instance, in numbers
        self._points = (
            (folder / layout.POINTS.format(split=split)).open("wb") if with_instances else None
        )
        self._region_lengths: list[int] = []  # by image
        self._region_maps = (
            (folder / layout.REGION_MAPS.format(split=split)).open("wb") if with_regions else None
        )

    def __enter__(self) -> "SplitWriter":
        return self

    def __exit__(self, *_: object) -> None:
        if self._shard is not None:
            self._shard.close()
        for file in (self._masks, self._points, self._region_maps):
            if file is not None:
                file.close()

    def add(self, item: Item, height: int, width: int, regions: bytes = b"") -> None:
        """Append one image of this size in pixels, and its maps as `encode_maps` gives them.

        The digest is of what the source has; maps follow from the images.
        """
        key = f"{len(self._rows.shard):08d}"
        offset = self._append(f"{key}.{_extension(item.image)}", item.image, new_image=True)
        rows = self._rows
        rows.shard.append(self._shard_number)
        rows.offset.append(offset)
        rows.size.append(len(item.image))
        semantic = item.semantic or b""
        rows.semantic_offset.append(
            self._append(f"{key}.semantic.png", semantic) if semantic else 0
        )
        rows.semantic_size.append(len(semantic))
        rows.label.append(-1 if item.label is None else item.label)
        rows.height.append(height)
        rows.width.append(width)
        rows.image_id.append(item.image_id)
        rows.annotated.append(item.annotated)
        self._update_digest(item.image, semantic, str((item.label, item.annotated)).encode())
        if self._instances is not None and self._masks is not None:
            instances = item.instances or _NO_INSTANCES
            # The codes go to their file at once: COCO's take 300 MB.
            self._masks.write(b"".join(instances.codes))
            self._add_polygons(instances)
            self._instances.append(dataclasses.replace(instances, codes=(), polygons=()))
            self._code_lengths.append([len(code) for code in instances.codes])
            self._update_digest(
                instances.boxes.tobytes(), instances.labels.tobytes(), instances.areas.tobytes(),
                instances.crowd.tobytes(), *instances.codes,
            )  # fmt: skip
        if self._region_maps is not None:
            self._region_maps.write(regions)
            self._region_lengths.append(len(regions))

    def finish(self) -> str:
        """Write the index and return the split's SHA-256."""
        columns = {name: np.array(rows, dtype=np.int64) for name, rows in vars(self._rows).items()}
        columns["annotated"] = columns["annotated"].astype(bool)
        _save(self._folder / layout.INDEX.format(split=self._split), columns)
        if self._instances is not None:
            path = self._folder / layout.INSTANCES.format(split=self._split)
            _save(path, _instance_columns(self._instances, self._code_lengths))
            self._finish_polygons()
        if self._region_maps is not None:
            path = self._folder / layout.REGIONS.format(split=self._split)
            _save(path, {"first": np.cumsum([0, *self._region_lengths])})
        return self._digest.hexdigest()

    def _add_polygons(self, instances: EncodedInstances) -> None:
        assert self._points is not None
        for polygons in instances.polygons or [()] * len(instances.labels):
            self._polygon_lengths.append([len(polygon) for polygon in polygons])
            for polygon in polygons:
                self._points.write(polygon.astype("<f4").tobytes())

    def _finish_polygons(self) -> None:
        """Write the index of the polygons, or nothing where there are none."""
        assert self._points is not None
        self._points.close()
        lengths = list(chain.from_iterable(self._polygon_lengths))
        if not lengths:
            (self._folder / layout.POINTS.format(split=self._split)).unlink()
            return
        columns = {
            "first": np.cumsum([0, *map(len, self._polygon_lengths)]),
            "offset": np.cumsum([0, *lengths]),
        }
        _save(self._folder / layout.POLYGONS.format(split=self._split), columns)

    def _append(self, name: str, content: bytes, *, new_image: bool = False) -> int:
        """Append a member and return the offset of its bytes; an image may open a new shard."""
        if self._shard is None or (new_image and self._shard.offset >= self._shard_bytes):
            if self._shard is not None:
                self._shard.close()
            self._shard_number += 1
            path = self._folder / layout.SHARD.format(split=self._split, number=self._shard_number)
            self._shard = tarfile.TarFile(path, "w", format=tarfile.USTAR_FORMAT)
        header = tarfile.TarInfo(name)
        header.size = len(content)
        offset = self._shard.offset + tarfile.BLOCKSIZE  # a USTAR header of a short name: one block
        self._shard.addfile(header, io.BytesIO(content))
        return offset

    def _update_digest(self, *parts: bytes) -> None:
        for part in parts:
            self._digest.update(len(part).to_bytes(8, "little"))
            self._digest.update(part)


def _instance_columns(
    images: list[EncodedInstances], code_lengths: list[list[int]]
) -> dict[str, np.ndarray]:
    """Return the instances of all images one after the other, and where each image's begin."""
    return {
        "first": np.cumsum([0, *map(len, code_lengths)]),
        "box": np.concatenate([image.boxes for image in images]),
        "label": np.concatenate([image.labels for image in images]),
        "area": np.concatenate([image.areas for image in images]),
        "crowd": np.concatenate([image.crowd for image in images]),
        "code_offset": np.cumsum([0, *chain.from_iterable(code_lengths)]),
    }


def _save(path: Path, columns: dict[str, np.ndarray]) -> None:
    """Write named arrays; NumPy's zip entries carry a fixed date."""
    np.savez(path, **columns)  # type: ignore[arg-type]  # the stub takes them for allow_pickle


def _extension(image: bytes) -> str:
    """Return the file name's end by the first bytes, so that `tar x` gives usable files."""
    if image.startswith(b"\xff\xd8"):
        return "jpg"
    return "png" if image.startswith(b"\x89PNG") else "img"
