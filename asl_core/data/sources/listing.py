"""Which files below a folder are images, and what else lies there: nothing is lost unsaid."""

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from asl_core.data.image_header import SIGNATURE_BYTES, image_format
from asl_core.data.sources.files import broken_link, counted, item_or_rejected, shown
from asl_core.data.sources.source import Item, Rejected, Split
from asl_core.errors import InputError

_IMAGE_SUFFIXES = frozenset(
    (".apng", ".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg",
     ".jxl", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp")
)  # fmt: skip
"""What the names of images end in, decodable or not: those that are not are rejected by name."""
SYSTEM_FOLDERS = frozenset(
    ("__MACOSX", "lost+found", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information")
)
"""What systems put among people's files."""


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A file that should be an image.

    Attributes:
        path: Where it is.
        size: In bytes; 0 where that cannot be told.
        problem: Why it cannot be used, if its folder tells already.
    """

    path: Path
    size: int
    problem: str | None = None


@dataclass
class Listing:
    """What was found in one or several folders.

    Attributes:
        images: By folder, in the order of their names. An image is what its name says is one,
            or what begins as one.
        others: Files that are no images, and hidden ones.
        by_content: Those of the images whose names do not say that they are.
        skipped: Folders that a system made, and hidden ones.
        again: Links to folders that are read already, or that hold the link.
    """

    images: list[ImageFile] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    by_content: list[Path] = field(default_factory=list)
    skipped: list[Path] = field(default_factory=list)
    again: list[Path] = field(default_factory=list)

    def scan(self, folder: Path) -> list[Path]:
        """Add the files of a folder and return its subfolders, sorted.

        Raises:
            InputError: The folder cannot be read: what is in it would be missing.
        """
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            raise InputError(
                f"{shown(folder)} cannot be read ({error.strerror}); make it readable or move it "
                "out of the source"
            ) from error
        folders = []
        for entry in entries:
            path = Path(entry.path)
            hidden = entry.name.startswith(".")
            # a link in a circle is no folder either, but is_dir would raise
            if os.path.isdir(path) if entry.is_symlink() else entry.is_dir():
                of_system = hidden or entry.name in SYSTEM_FOLDERS
                (self.skipped if of_system else folders).append(path)
            elif hidden:
                self.others.append(path)
            else:
                self._add_file(entry, path)
        return folders

    def walk(self, folder: Path) -> None:
        """Add the files of a folder and of all below it, through links, each folder once.

        Raises:
            InputError: A folder cannot be read.
        """
        above = {identity_of(parent) for parent in folder.resolve().parents}
        pending, known = [folder], above
        first = len(self.images)
        while pending:
            current = pending.pop()
            identity = identity_of(current)
            if identity in known:
                self.again.append(current)
                continue
            known.add(identity)
            pending += reversed(self.scan(current))
        self.images[first:] = sorted(self.images[first:], key=lambda image: image.path.parts)

    def notes(self, root: Path) -> list[str]:
        """Return one sentence for each kind of thing that was left out or taken by its content."""
        kinds = (
            (self.others, "file that is no image was left out",
             "files that are no images were left out"),
            (self.skipped, "folder that a system made was left out",
             "folders that a system made were left out"),
            (self.again, "link to a folder that is read already was not followed",
             "links to folders that are read already were not followed"),
            (self.by_content, "file was read as an image for its content, not its name",
             "files were read as images for their content, not their names"),
        )  # fmt: skip
        return [note_of(paths, root, one, many) for paths, one, many in kinds if paths]

    def _add_file(self, entry: os.DirEntry[str], path: Path) -> None:
        named = is_image_name(path)
        if entry.is_symlink() and (gone := broken_link(path)):
            self.images.append(ImageFile(path, 0, f"is {gone}"))
            return
        try:
            status = entry.stat()
        except OSError:
            status = None  # reading it will say why
        regular = status is None or stat.S_ISREG(status.st_mode)
        if not named and not (regular and begins_as_image(path)):
            self.others.append(path)
            return
        if not named:
            self.by_content.append(path)
        problem = None if regular else "is no regular file"
        self.images.append(ImageFile(path, status.st_size if status else 0, problem))


def is_image_name(path: Path | str) -> bool:
    """Return whether a file's name says that it is an image."""
    return os.path.splitext(path)[1].lower() in _IMAGE_SUFFIXES


def begins_as_image(path: Path | str) -> bool:
    """Return whether a file begins as images do; not where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return image_format(file.read(SIGNATURE_BYTES)) is not None
    except OSError:
        return False


def identity_of(folder: Path) -> tuple[int, int]:
    """Return what tells whether two paths lead to one folder."""
    status = folder.stat()
    return status.st_dev, status.st_ino


def note_of(paths: Sequence[Path], root: Path, one: str, many: str) -> str:
    """Return "2 files were left out, the first a.txt.", with names as seen from the root."""
    return f"{counted(len(paths), one, many)}, the first {shown(paths[0].relative_to(root))}."


def split_of(
    images: Sequence[ImageFile], root: Path, build: Callable[[str, int, Path], Item]
) -> Split:
    """Return a split of these images, named as seen from the root.

    Args:
        images: In order.
        root: Folder of the source.
        build: Makes an item of a name, a number from 0 and a file; raises OSError or ValueError
            where it cannot be used.
    """
    return Split(
        len(images),
        partial(_items, images, root, build),
        rejected=tuple(
            Rejected(shown(image.path.relative_to(root)), image.problem)
            for image in images
            if image.problem
        ),
        size=sum(image.size for image in images),
    )


def _items(
    images: Sequence[ImageFile], root: Path, build: Callable[[str, int, Path], Item]
) -> Iterator[Item | Rejected]:
    for number, image in enumerate(images):
        name = shown(image.path.relative_to(root))
        if image.problem:
            yield Rejected(name, image.problem)
        else:
            yield item_or_rejected(name, partial(build, name, number, image.path))
