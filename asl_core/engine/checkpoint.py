"""Checkpoints that are whole or absent.

A checkpoint is written to a temporary sibling, fsynced and renamed; its name carries the step and
the digest of its bytes, so that a damaged file is noticed on load and the one before is taken.
"""

import contextlib
import hashlib
import logging
import os
import re
import time
from pathlib import Path
from typing import IO, Any

import torch

from asl_core import distributed
from asl_core.errors import InputError

logger = logging.getLogger(__name__)

KEEP = 2
APPEARS_S = 90.0  # NFS shows a folder as it was up to 60 s ago, unless told otherwise
_NAME = re.compile(r"step-(\d{9})-([0-9a-f]{16})\.pt")


class _HashingFile:
    """File that digests what passes through it; torch.save needs no more than this."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._digest = hashlib.blake2b(digest_size=8)

    def write(self, data: bytes) -> int:
        self._digest.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def digest(self) -> str:
        return self._digest.hexdigest()


class CheckpointFolder:
    """The checkpoints of one run; the newest two are kept.

    Args:
        path: Folder, created at the first save.
        appears_s: For so long a process waits until it sees the file that the first one sees.
    """

    def __init__(self, path: Path, appears_s: float = APPEARS_S) -> None:
        self.path, self.appears_s = path, appears_s

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write a checkpoint atomically and drop all but the newest two.

        Raises:
            OSError: The disk is full or not writable; earlier checkpoints stay as they are.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        for left in self.path.glob(".step-*.tmp"):  # by who was killed while saving
            left.unlink(missing_ok=True)
        temporary = self.path / f".step-{step:09d}.{os.getpid()}.tmp"
        try:
            with open(temporary, "wb") as raw:
                file = _HashingFile(raw)
                torch.save(state, file)  # type: ignore[arg-type]
                raw.flush()
                os.fsync(raw.fileno())
            target = self.path / f"step-{step:09d}-{file.digest()}.pt"
            os.replace(temporary, target)
        except (OSError, RuntimeError) as error:
            temporary.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise
            # torch reports a failed write as RuntimeError, its cause hidden
            raise OSError(f"cannot write a checkpoint to {self.path}: {error}") from error
        _sync_folder(self.path)
        for old in self._newest_first()[KEEP:]:
            old.unlink(missing_ok=True)
        return target

    def newest(self) -> Path | None:
        """Return the file of the newest checkpoint, unread."""
        return next(iter(self._newest_first()), None)

    def load_newest(self) -> tuple[int, dict[str, Any]] | None:
        """Return step and state of the newest undamaged checkpoint, or None if there is none.

        The first process chooses it: a network filesystem may show another one a file later.

        Raises:
            InputError: Checkpoints exist but every one is damaged; or a process does not find the
                chosen one whole.
        """
        name = distributed.decided_by_first(self._newest_undamaged)
        if name is None:
            return None
        path = self.path / name
        for rank, found in enumerate(distributed.gather_objects(self._wait_for(path))):
            if not found:
                raise InputError(
                    f"process {rank} finds no whole checkpoint {path} within {self.appears_s:g} s, "
                    "the first process does; put the folder on a filesystem that all nodes share"
                )
        return int(path.name.split("-")[1]), torch.load(path, map_location="cpu", weights_only=True)

    def _newest_undamaged(self) -> str | None:
        candidates = self._newest_first()
        for path in candidates:
            if _is_whole(path):
                return path.name
            logger.warning("checkpoint %s is damaged; trying the one before", path)
        if candidates:
            raise InputError(
                f"all checkpoints in {self.path} are damaged; delete the folder to start anew"
            )
        return None

    def _wait_for(self, path: Path) -> bool:
        """Return whether this process sees a file whole, at once or soon."""
        if distributed.rank() == 0:
            return True  # it has just read it
        give_up = time.monotonic() + self.appears_s
        while True:
            with contextlib.suppress(OSError):
                # listing the folder makes a network filesystem ask its server
                if path in self._newest_first() and _is_whole(path):
                    return True
            if time.monotonic() > give_up:
                return False
            time.sleep(0.2)

    def _newest_first(self) -> list[Path]:
        if not self.path.is_dir():
            return []
        return sorted((p for p in self.path.iterdir() if _NAME.fullmatch(p.name)), reverse=True)


def _is_whole(path: Path) -> bool:
    """Return whether a checkpoint's bytes have the digest that its name says."""
    digest = hashlib.blake2b(digest_size=8)
    with open(path, "rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return path.stem.endswith(f"-{digest.hexdigest()}")


def _sync_folder(path: Path) -> None:
    """Make a rename durable; some filesystems cannot sync a folder and need not."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
