"""The images that are to be embedded: files in folders, or those of packed datasets."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor
from torchvision.io import ImageReadMode, decode_image

from asl_core.data.encoded_files import EncodedFiles
from asl_core.data.manifest import FILE_NAME, read_manifest
from asl_core.data.shards import PackedDataset
from asl_core.data.sources.files import shown
from asl_core.data.sources.listing import Listing
from asl_core.errors import InputError
from asl_core.transfer.embedding import Pending, Picture, read_picture

FILES, PACKED = "files", "packed"


@dataclass(frozen=True)
class ListedImage:
    """An image that is there, unread.

    Attributes:
        pending: Its name and how it is read.
        mark: Changes when the file does, but for an edit in place that keeps size and time.
        file: Where it lies; None in a packed dataset.
        label: Its class, -1 where it has none.
    """

    pending: Pending
    mark: str
    file: Path | None = None
    label: int = -1


@dataclass(frozen=True)
class ListedImages:
    """All images.

    Attributes:
        images: In order, each once.
        root: Folder from which their names start.
        kind: files, or packed.
        notes: What was left out, a sentence each.
        classes: Names of labels, in packed datasets that all have the same.
    """

    images: list[ListedImage]
    root: Path
    kind: str
    notes: list[str]
    classes: tuple[str, ...] | None = None

    @property
    def digest(self) -> str:
        """Of their names and order."""
        text = "\n".join(image.pending.name for image in self.images)
        return hashlib.sha256(text.encode()).hexdigest()


def list_files(given: Sequence[Path]) -> ListedImages:
    """List image files, and those of folders and all below them, in the order of their names.

    Names are as seen from the folder, or from the folder that all of what is given has above it.

    Raises:
        InputError: Something is not there or cannot be read, or there is no image.
    """
    places = [Path(os.path.abspath(each)) for each in given]
    folders = [each if each.is_dir() else each.parent for each in places]
    root = Path(os.path.commonpath(folders))
    listing = Listing()
    for place in places:
        if place.is_dir():
            listing.walk(place)
    files = {image.path: image.problem for image in listing.images}
    files |= {place: None for place in places if not place.is_dir()}
    if not files:
        raise InputError(
            f"{', '.join(shown(each) for each in given)}: no image is there; give a folder of "
            "images, image files, or the name of a dataset"
        )
    images = [
        ListedImage(_pending(shown(path.relative_to(root)), path, problem), _mark(path), path)
        for path, problem in sorted(files.items(), key=lambda item: item[0].parts)
    ]
    return ListedImages(images, root, FILES, listing.notes(root))


def list_packed(folders: Sequence[Path]) -> ListedImages:
    """List the images of packed datasets, `train/00000000` or, of several, `icons/train/00000000`.

    Args:
        folders: Of datasets, or of these and a split: `data/icons/test`.

    Raises:
        InputError: One is none, or has no such split.
    """
    parts = [_split_of(Path(os.path.abspath(folder))) for folder in folders]
    names = [folder for folder, _ in parts]
    root = names[0] if len({*names}) == 1 else Path(os.path.commonpath(names))
    images: dict[str, ListedImage] = {}
    classes = {read_manifest(folder).classes for folder, _ in parts}
    for folder, splits in parts:
        for split in splits:
            dataset, files = PackedDataset(folder, split), EncodedFiles(folder, split)
            where = (folder.relative_to(root) / split).as_posix()
            digest = dataset.manifest.digests[split]
            for index, label in enumerate(dataset.labels.tolist()):
                pending = Pending(f"{where}/{index:08d}", partial(read_packed, files, index))
                images[pending.name] = ListedImage(pending, f"{digest} {index}", label=label)
    return ListedImages(
        [*images.values()], root, PACKED, [], classes.pop() if len(classes) == 1 else None
    )


def read_packed(files: EncodedFiles, index: int) -> Picture:
    """Read an image of a packed dataset, as the dataset does; the sha256 is that of its file."""
    encoded = files.read(index)
    digest = hashlib.sha256(encoded.numpy().data).hexdigest()
    try:
        return Picture(decode_image(encoded, ImageReadMode.RGB), digest)
    except RuntimeError as error:  # it could be decoded when it was packed
        raise ValueError(f"is damaged: {str(error).splitlines()[0]}") from error


def read_row(root: Path, kind: str, name: str) -> Tensor:
    """Return the pixels of a row's image, (3, H, W) uint8.

    Raises:
        OSError: It is gone.
        ValueError: It cannot be decoded any more.
        InputError: The packed dataset that it is of is gone.
    """
    if kind == FILES:
        return read_picture(file_of_row(root, name)).pixels
    folder = root / name
    dataset, split, index = folder.parents[1], folder.parent.name, int(folder.name)
    return PackedDataset(dataset, split).read_image(index)


def file_of_row(root: Path, name: str) -> Path:
    """Return where the image of a row lies; names with escapes are looked for among the files.

    Raises:
        FileNotFoundError: It is gone.
    """
    path = root / name
    if not path.is_file() and "\\" in name:
        path = root
        for part in Path(name).parts:
            path = next((each for each in _entries(path) if shown(each.name) == part), path / part)
    if not path.is_file():
        raise FileNotFoundError(f"{shown(path)} does not exist")
    return path


def _entries(folder: Path) -> Iterator[Path]:
    return folder.iterdir() if folder.is_dir() else iter(())


def _split_of(folder: Path) -> tuple[Path, tuple[str, ...]]:
    """Return a dataset's folder and which of its splits are meant; of all, those with images."""
    if (folder / FILE_NAME).is_file():
        counts = read_manifest(folder).counts
        return folder, tuple(split for split, count in counts.items() if count)
    return folder.parent, (folder.name,)


def _pending(name: str, path: Path, problem: str | None) -> Pending:
    if problem is None:
        return Pending(name, partial(read_picture, path))
    return Pending(name, partial(_refuse, problem))


def _refuse(problem: str) -> Picture:
    raise ValueError(problem)


def _mark(path: Path) -> str:
    try:
        status = path.stat()
    except OSError:
        return ""
    return f"{status.st_size} {status.st_mtime_ns}"
