"""Zip files that come from elsewhere, read with suspicion, and such files, written whole or not.

Standard library only. What an archive may hold is what its list says: path, size and sha256.
"""

import hashlib
import os
import shutil
import stat
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import IO, Self

from pipeline.bundles.manifest import Mark, Marks

CHUNK = 1 << 20
LIST_BYTES = 64 << 20
"""Largest list of contents."""
_DATE = (1980, 1, 1, 0, 0, 0)
"""Of every entry: equal content is an equal archive, and no file is younger than who reads it."""
_STORED = (".safetensors", ".npz", ".png")
"""Files that do not become smaller. A tar of small images does: headers, padding, equal tables."""


class ArchiveError(Exception):
    """Raised for an archive that is damaged or not what it should be; says what and where."""


def write_archive(path: Path, entries: Mapping[str, Path | bytes]) -> None:
    """Write a zip beside its place, flush it to the disk, and rename it into place.

    Args:
        path: Where to.
        entries: Path in the archive -> a file, or the content itself.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            with zipfile.ZipFile(file, "w") as archive:
                for name, source in entries.items():
                    _write(archive, name, source)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _write(archive: zipfile.ZipFile, name: str, source: Path | bytes) -> None:
    info = zipfile.ZipInfo(name, _DATE)
    info.external_attr = (stat.S_IFREG | 0o644) << 16
    info.compress_type = zipfile.ZIP_STORED if name.endswith(_STORED) else zipfile.ZIP_DEFLATED
    if isinstance(source, bytes):
        archive.writestr(info, source)
        return
    info.file_size = source.stat().st_size
    with source.open("rb") as read, archive.open(info, "w") as written:
        shutil.copyfileobj(read, written, CHUNK)


class Archive:
    """A zip that is open for reading.

    Args:
        path: The file.

    Raises:
        ArchiveError: It is no zip, is cut off, or has an entry that is no plain file in it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            said = error.strerror if isinstance(error, OSError) else "it is no whole zip archive"
            raise ArchiveError(f"{path}: {said}; copy it once more") from error
        try:
            self._infos = self._check_names()
        except ArchiveError:
            self._zip.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._zip.close()

    def _check_names(self) -> dict[str, zipfile.ZipInfo]:
        infos: dict[str, zipfile.ZipInfo] = {}
        for info in self._zip.infolist():
            name, mode = info.filename, info.external_attr >> 16
            if not is_plain_path(name) or info.orig_filename != name:
                raise ArchiveError(
                    f"{self.path}: has an entry {name!r}, which leads out of it or is no file; "
                    "nothing was taken"
                )
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG):  # zip files of other systems say none
                raise ArchiveError(f"{self.path}: {name} is a link or a device; nothing was taken")
            if name in infos:
                raise ArchiveError(f"{self.path}: has {name} twice; nothing was taken")
            infos[name] = info
        return infos

    def read(self, name: str, most: int = LIST_BYTES) -> bytes:
        """Return the content of a small entry.

        Raises:
            ArchiveError: It is missing, damaged, or larger than `most` bytes.
        """
        with self._open(name) as file:
            content = self._next(file, name, most + 1)
        if len(content) > most:
            raise ArchiveError(f"{self.path}: {name} has more than {most} bytes")
        return content

    def check_list(self, marks: Marks, besides: frozenset[str]) -> None:
        """Check that the archive has what its list says and nothing else, at the sizes it says.

        Raises:
            ArchiveError: Something is missing, not in the list, or of another size.
        """
        names = self._infos.keys() - besides
        for name in sorted(names ^ marks.keys()):
            lack = "its list does not name it" if name in names else "it is missing"
            raise ArchiveError(f"{self.path}: {name}: {lack}; nothing was taken")
        for name, mark in marks.items():
            size = self._infos[name].file_size
            if size != mark.size:
                raise ArchiveError(
                    f"{self.path}: {name} has {size} bytes, its list says {mark.size}; "
                    "nothing was taken"
                )

    def extract(self, name: str, target: Path, mark: Mark) -> None:
        """Write an entry to a new file while its content is what the list says.

        Raises:
            ArchiveError: It is damaged or something else; the file is removed.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        digest, left = hashlib.sha256(), mark.size
        try:
            with self._open(name) as read, target.open("xb") as written:
                while chunk := self._next(read, name, CHUNK):
                    left -= len(chunk)
                    if left < 0:
                        break
                    digest.update(chunk)
                    written.write(chunk)
            if left or digest.hexdigest() != mark.sha256:
                raise ArchiveError(
                    f"{self.path}: {name} is not what the list says it is (sha256); "
                    "nothing was taken, copy it once more"
                )
        except ArchiveError:
            target.unlink(missing_ok=True)
            raise

    def _open(self, name: str) -> IO[bytes]:
        try:
            return self._zip.open(self._infos[name])
        except KeyError:
            raise ArchiveError(f"{self.path}: {name} is missing; nothing was taken") from None
        except _DAMAGE as error:
            raise self._damaged(name) from error

    def _next(self, file: IO[bytes], name: str, size: int) -> bytes:
        try:
            return file.read(size)
        except _DAMAGE as error:
            raise self._damaged(name) from error

    def _damaged(self, name: str) -> ArchiveError:
        return ArchiveError(
            f"{self.path}: {name} is damaged (checksum); nothing was taken, copy it once more"
        )


_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError)


def is_plain_path(name: str) -> bool:
    """Say whether a path stays where it is extracted: relative, without .., for every system."""
    parts = PurePosixPath(name).parts
    return (
        bool(parts)
        and "/".join(parts) == name
        and not any(part in ("..", ".") for part in parts)
        and not any(character in name for character in "\\:\0")
    )
