"""All images below folders that somebody has: links, circles, patterns, a million files."""

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from asl_core.data.sources.files import broken_link, counted, read_file, shown
from asl_core.data.sources.listing import (
    SYSTEM_FOLDERS,
    begins_as_image,
    identity_of,
    is_image_name,
)
from asl_core.errors import InputError

Below = tuple[int, str]
"""Number of the folder, and the path of a folder below it with / between."""


class TreeImage(NamedTuple):
    """A file that should be an image.

    Attributes:
        root: Number of the folder.
        path: Below that, with / between.
        size: Bytes; 0 where that cannot be told.
    """

    root: int
    path: str
    size: int


@dataclass
class _Left:
    """Things of one kind that were left out."""

    count: int = 0
    first: str = ""

    def add(self, name: str) -> None:
        self.first = self.first if self.count else name
        self.count += 1

    def note(self, one: str, many: str) -> str:
        return f"{counted(self.count, one, many)}, the first {shown(self.first)}."


@dataclass
class Tree:
    """What lies in folders and below; images are held by their names alone.

    Attributes:
        roots: The folders.
        include: As `Images.include`.
        exclude: As `Images.exclude`.
        unseen: Files that are no images and of which nothing is said, such as that of the labels.
        images: In the order of the folders, then of their names, part by part.
        problems: Image -> why it cannot be used.
    """

    roots: Sequence[Path]
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    unseen: frozenset[str] = frozenset()
    images: list[TreeImage] = field(default_factory=list)
    problems: dict[TreeImage, str] = field(default_factory=dict)
    _others: _Left = field(default_factory=_Left)
    _skipped: _Left = field(default_factory=_Left)
    _again: _Left = field(default_factory=_Left)
    _by_content: _Left = field(default_factory=_Left)
    _unwanted: _Left = field(default_factory=_Left)

    def walk(self) -> None:
        """Find the images; each folder is read once, and before any link that leads to it.

        Raises:
            InputError: A folder cannot be read: what is in it would be missing.
        """
        known: set[tuple[int, int]] = set()
        linked: list[Below] = []
        for number in range(len(self.roots)):
            self._walk((number, ""), known, linked)
        while linked:
            self._walk(linked.pop(0), known, linked)
        self.images.sort(key=lambda image: (image.root, image.path.split("/")))

    def read(self, image: TreeImage) -> bytes:
        """Return an image's file.

        Raises:
            OSError: It cannot be read.
            ValueError: It is a link to nothing, or no file with a content.
        """
        path = f"{self.roots[image.root]}/{image.path}"
        try:
            file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return read_file(Path(path))  # says in what way
        with open(file, "rb", buffering=0) as opened:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise ValueError("is no regular file")
            return opened.read()

    def notes(self) -> tuple[str, ...]:
        """Return one sentence for each kind of thing that was left out or taken by its content."""
        kinds = (
            (self._others, "file that is no image was left out",
             "files that are no images were left out"),
            (self._unwanted, "file or folder was left out by include and exclude",
             "files or folders were left out by include and exclude"),
            (self._skipped, "folder that a system made was left out",
             "folders that a system made were left out"),
            (self._again, "folder that is read already was not read again",
             "folders that are read already were not read again"),
            (self._by_content, "file was read as an image for its content, not its name",
             "files were read as images for their content, not their names"),
        )  # fmt: skip
        return tuple(kind.note(one, many) for kind, one, many in kinds if kind.count)

    def _place(self, below: Below) -> Path:
        return self.roots[below[0]] / below[1]

    def _walk(self, start: Below, known: set[tuple[int, int]], linked: list[Below]) -> None:
        pending = [start]
        while pending:
            current = pending.pop()
            identity = identity_of(self._place(current))
            if identity in known:
                self._again.add(current[1] or str(self.roots[current[0]]))
                continue
            known.add(identity)
            self._scan(current, pending, linked)

    def _scan(self, folder: Below, pending: list[Below], linked: list[Below]) -> None:
        root, prefix = folder[0], f"{folder[1]}/" if folder[1] else ""
        place = self._place(folder)
        try:
            with os.scandir(place) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            raise InputError(
                f"{shown(place)} cannot be read ({error.strerror}); make it readable, or `exclude` "
                "it"
            ) from error
        for entry in found:
            name = f"{prefix}{entry.name}"
            link = entry.is_symlink()
            # a link in a circle is no folder either, but is_dir would raise
            if os.path.isdir(entry.path) if link else entry.is_dir():
                if entry.name.startswith(".") or entry.name in SYSTEM_FOLDERS:
                    self._skipped.add(name)
                elif matches_any(name, self.exclude):
                    self._unwanted.add(name)
                else:
                    (linked if link else pending).append((root, name))
            else:
                self._add_file(entry, (root, name), link)

    def _add_file(self, entry: os.DirEntry[str], below: Below, link: bool) -> None:
        name = below[1]
        named = is_image_name(entry.name)
        if entry.name.startswith("."):
            self._others.add(name)
            return
        wanted = not self.include or matches_any(name, self.include)
        if matches_any(name, self.exclude) or not wanted:
            if named:
                self._unwanted.add(name)
            return
        if link and (gone := broken_link(Path(entry.path))):
            if named:
                self._add_image(below, 0, f"is {gone}")
            else:
                self._others.add(name)
            return
        try:
            status = entry.stat()
        except OSError:
            status = None  # reading it will say why
        regular = status is None or stat.S_ISREG(status.st_mode)
        if not named:
            if not (regular and begins_as_image(entry.path)):
                if entry.path not in self.unseen:
                    self._others.add(name)
                return
            self._by_content.add(name)
        size = status.st_size if status else 0
        self._add_image(below, size, None if regular else "is no regular file")

    def _add_image(self, below: Below, size: int, problem: str | None) -> None:
        image = TreeImage(*below, size)
        self.images.append(image)
        if problem:
            self.problems[image] = problem


def matches_any(path: str, patterns: Sequence[str]) -> bool:
    """Return whether a path, with / between, matches one of the patterns of `Images.include`.

    A pattern with a / is for the whole path, or that of a folder above; one without for a part.
    """
    if not patterns:
        return False
    parts = path.split("/")
    for pattern in patterns:
        if "/" in pattern.strip("/"):
            whole = pattern.strip("/")
            above = ("/".join(parts[:count]) for count in range(1, len(parts) + 1))
            if any(fnmatchcase(each, whole) for each in above):
                return True
        elif any(fnmatchcase(part, pattern.strip("/")) for part in parts):
            return True
    return False
