"""Images that come without a split: any folder, tar files, a saved Hugging Face dataset.

A share of the images is held out to test on. Which side an image is on, and the order in which
images are packed, follow from the bytes of its file alone. So the same files give the same dataset
from each of these sources, copies of a file are never on both sides, and no image changes sides
when others come or go.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from asl_core.recipes.packing import Packing, Place, on_disk
from asl_core.recipes.patterns import expand_braces, find_files

_SIDES = (16, 65500)
"""Pixels: a patch, and what a JPEG can hold."""


@dataclass(frozen=True, kw_only=True)
class Undivided(Packing):
    """What the sources without a split have in common.

    Images are stored as they are where every reader of a packed dataset sees them as Pillow does,
    upright: still JPEG, PNG and WebP of 8 bits. All else is converted once, as it is packed
    (`asl_core/data/conversion.py`).
    """

    max_rejected_share: float = 0.1
    """Largest share of the images, of both splits, that may be unreadable. A folder that nobody
    curated has some; where it is one in ten, a codec or a permission is missing, or the folder is
    another."""
    holdout: float = 0.05
    """Share of the images that is held out as test split, by the SHA-256 of each image's file: a
    larger one keeps those of a smaller one. 0: none, for a member of a union that only trains."""
    duplicates: Literal["keep", "drop"] = "keep"
    """What becomes of files that are copies, byte for byte: they are on one side in any case, and
    counted in a note. `drop` packs one of them."""
    unlabelled: Literal["keep", "drop"] = "drop"
    """What becomes of images without a label where the others have one. Evaluations with labels
    refuse a split in which some are missing. Without labels altogether, all images are kept."""
    max_side: int | None = None
    """Longest side in pixels; larger images are made smaller once, as they are packed, by Pillow's
    Lanczos filter, and stored as JPEG. absent: stored as large as they are. Decoding takes time in
    proportion to the pixels; a crop of 224 px needs no more than about 512."""
    quality: int = 95
    """Of Pillow's JPEG encoder (4:4:4), for what is made smaller or comes from a lossy format that
    cannot be stored as it is. The bytes are the same wherever Pillow's version is."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.holdout < 1:
            raise ValueError(f"holdout must be a share from 0 to below 1, got {self.holdout}")
        if self.max_side is not None and not _SIDES[0] <= self.max_side <= _SIDES[1]:
            raise ValueError(
                f"max_side must be from {_SIDES[0]} to {_SIDES[1]} pixels, got {self.max_side}"
            )
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality must be from 1 to 100, got {self.quality}")


@dataclass(frozen=True, kw_only=True)
class Images(Undivided):
    """Any folder, or several, with all below them; links are followed, each folder is read once."""

    source: Literal["images"] = "images"
    path: str | tuple[str, ...]
    """The folder, or folders; relative to the data root, or absolute. `~` and $VARIABLES are
    expanded."""
    labels: Literal["folder", "csv", "none"] = "none"
    """`folder`: the first folder below `path` is the class, and an image that lies in `path` itself
    has none. `csv`: from `labels_file`."""
    labels_file: str = "labels.csv"
    """A CSV file in UTF-8 with a header, in which `file` is the image's path below `path`, with /
    between, and `label` its class; other columns are not read. Relative to (the first) `path`, or
    absolute."""
    include: tuple[str, ...] = ()
    """Only images that match one of these patterns; absent: all. `*` stands for anything, / too,
    capitals differ. A pattern with a / is for the path below `path`: `2021/*.jpg`; one without is
    for a name, that of the file or of a folder above it: `*.jpg`, `thumbnails`."""
    exclude: tuple[str, ...] = ()
    """No image that matches one of these; a folder that matches is not entered."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.paths or not all(self.paths):
            raise ValueError("path is empty; give the folder of the images, or a list of folders")
        if len(set(self.paths)) < len(self.paths):
            twice = next(path for path in self.paths if self.paths.count(path) > 1)
            raise ValueError(f"path names {twice!r} twice; name each folder once")
        if not self.labels_file:
            raise ValueError("labels_file is empty; give the CSV file with the labels")
        for name in ("include", "exclude"):
            if not all(getattr(self, name)):
                raise ValueError(f"{name} has an empty pattern; remove it")

    @property
    def paths(self) -> tuple[str, ...]:
        """The folders as the recipe writes them."""
        return (self.path,) if isinstance(self.path, str) else self.path

    @property
    def labelled(self) -> bool:
        """Whether images get labels."""
        return self.labels != "none"

    def folders(self, data_root: Path) -> tuple[Path, ...]:
        """Return where the folders lie on this machine."""
        return tuple(on_disk(path, data_root) for path in self.paths)

    def file_of_labels(self, data_root: Path) -> Path:
        """Return where the CSV file lies on this machine."""
        return on_disk(self.labels_file, self.folders(data_root)[0])

    def places(self, data_root: Path) -> tuple[Place, ...]:
        """Return the folders, and the file of the labels."""
        found: list[Place] = [
            (path, (folder,))
            for path, folder in zip(self.paths, self.folders(data_root), strict=True)
        ]
        if self.labels == "csv":
            found.append((f"labels {self.labels_file}", (self.file_of_labels(data_root),)))
        return tuple(found)

    def needed(self, data_root: Path) -> tuple[Path, ...]:
        """Return the folders."""
        return self.folders(data_root)


@dataclass(frozen=True, kw_only=True)
class WebDataset(Undivided):
    """Uncompressed tar files as WebDataset has them: what names share before the first dot is one.

    The files are read by offset, never as a stream: the order of packing is not theirs.
    """

    source: Literal["webdataset"] = "webdataset"
    path: str | tuple[str, ...]
    """A tar file, or a pattern, or a list of such: `photos-{000..012}.tar`, `photos/*.tar`;
    relative to the data root, or absolute. `~` and $VARIABLES are expanded."""
    image: str | None = None
    """What an image's name has after its first dot: `jpg`, `rgb.png`. absent: each file whose name
    ends as that of an image; a sample with several is then refused."""
    labels: Literal["cls", "json", "none"] = "none"
    """`cls`: NAME.cls has the class, a number from 0 or a name. `json`: NAME.json has it in
    `label_field`."""
    label_field: str = "label"
    """Key in NAME.json."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.paths or not all(self.paths):
            raise ValueError("path is empty; give the tar files, as photos-{000..012}.tar")
        for path in self.paths:
            expand_braces(path)
        if self.image is not None and not self.image.strip("."):
            raise ValueError("image is empty; give what follows the first dot of names, as jpg")

    @property
    def paths(self) -> tuple[str, ...]:
        """The patterns as the recipe writes them."""
        return (self.path,) if isinstance(self.path, str) else self.path

    @property
    def labelled(self) -> bool:
        """Whether images get labels."""
        return self.labels != "none"

    def places(self, data_root: Path) -> tuple[Place, ...]:
        """Return the tar files of each pattern."""
        return tuple((path, find_files(path, data_root)) for path in self.paths)

    def needed(self, data_root: Path) -> tuple[Path, ...]:
        """Return the tar files, each once."""
        return tuple(dict.fromkeys(f for _, files in self.places(data_root) for f in files))


@dataclass(frozen=True, kw_only=True)
class HuggingFace(Undivided):
    """A dataset as `save_to_disk` leaves it, or one that is fetched by its name.

    Where it has a test split, that is packed as test split and nothing is held out.
    """

    source: Literal["huggingface"] = "huggingface"
    path: str | None = None
    """Folder that `save_to_disk` wrote; relative to the data root, or absolute. `~` and $VARIABLES
    are expanded."""
    name: str | None = None
    """Instead of a path: name of a dataset that the package `datasets` fetches over the network
    when it is packed, and only then."""
    config: str | None = None
    """Configuration of the named dataset, where it has several."""
    revision: str | None = None
    """Commit of the named dataset; it is needed, for what a name alone means changes."""
    image_column: str = "image"
    """Name of the column with the images, or with their files as bytes."""
    label_column: str | None = None
    """Name of the column with the classes: integers or strings; absent: no labels."""
    train_split: str | None = None
    """Name of the split to train on; absent: `train`, or the only one."""
    test_split: str | None = None
    """Name of the split to test on; absent: the first that is there of test, validation, valid,
    val and dev, else a share of the other is held out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.path and not self.name:
            raise ValueError(
                "has neither path nor name; give path, a folder that save_to_disk wrote, or name "
                "and revision"
            )
        if self.path and self.name:
            raise ValueError("has both path and name; keep one of them")
        if self.name and not self.revision:
            raise ValueError(
                f"name {self.name} needs a revision, for what a name means changes; give the "
                "commit that its page shows under `Files and versions`"
            )
        if self.path and (self.config or self.revision):
            raise ValueError("config and revision belong to a name, not to a path; remove them")
        if self.train_split and self.train_split == self.test_split:
            raise ValueError(f"train_split and test_split are both {self.train_split!r}")

    @property
    def labelled(self) -> bool:
        """Whether images get labels."""
        return self.label_column is not None

    def folder(self, data_root: Path) -> Path | None:
        """Return where it lies on this machine; None where it is fetched by name."""
        return None if self.path is None else on_disk(self.path, data_root)

    def places(self, data_root: Path) -> tuple[Place, ...]:
        """Return the folder, if it is in one."""
        folder = self.folder(data_root)
        return () if folder is None or self.path is None else ((self.path, (folder,)),)

    def needed(self, data_root: Path) -> tuple[Path, ...]:
        """Return the folder, if it is in one."""
        folder = self.folder(data_root)
        return () if folder is None else (folder,)
