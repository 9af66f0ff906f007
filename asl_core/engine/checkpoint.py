"""Checkpoints that are whole or absent.

A checkpoint is written to a temporary sibling, fsynced and renamed; its name carries the step and
the digest of its bytes, so that a damaged file is noticed on load and the one before is taken.
"""

import contextlib
import hashlib
import logging
import os
import re
from pathlib import Path
from typing import IO, Any

import torch

from asl_core.errors import InputError

logger = logging.getLogger(__name__)

KEEP = 2
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
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write a checkpoint atomically and drop all but the newest two.

        Raises:
            OSError: The disk is full or not writable; earlier checkpoints stay as they are.
        """
        self.path.mkdir(parents=True, exist_ok=True)
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

        Raises:
            InputError: Checkpoints exist but every one is damaged.
        """
        candidates = self._newest_first()
        for path in candidates:
            match = _NAME.fullmatch(path.name)
            assert match is not None  # _newest_first lists nothing else
            digest = hashlib.blake2b(digest_size=8)
            with open(path, "rb") as file:
                while chunk := file.read(1 << 22):
                    digest.update(chunk)
            if digest.hexdigest() == match[2]:
                return int(match[1]), torch.load(path, map_location="cpu", weights_only=True)
            logger.warning("checkpoint %s is damaged; trying the one before", path)
        if candidates:
            raise InputError(
                f"all checkpoints in {self.path} are damaged; delete the folder to start anew"
            )
        return None

    def _newest_first(self) -> list[Path]:
        if not self.path.is_dir():
            return []
        return sorted((p for p in self.path.iterdir() if _NAME.fullmatch(p.name)), reverse=True)


def _sync_folder(path: Path) -> None:
    """Make a rename durable; some filesystems cannot sync a folder and need not."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
