"""Locks that the kernel takes back: held by whoever has the descriptor, however that one ends.

flock belongs to an open file, which processes inherit: it stays taken until the last of them has
ended. That cannot be forgotten, and does not depend on process ids, which are used again.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from pipeline.schedulers.port import SchedulerError

POLL_S = 0.02


def try_lock(path: Path) -> int | None:
    """Take a lock if nobody has it; return its descriptor, None where somebody has it.

    Raises:
        OSError: The file cannot be opened, or its filesystem knows no such locks.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


@contextlib.contextmanager
def locked(path: Path, seconds: float) -> Iterator[None]:
    """Hold a lock for the duration of a block.

    Raises:
        SchedulerError: Somebody else has it for longer than so many seconds.
        OSError: The file cannot be opened, or its filesystem knows no such locks.
    """
    give_up = time.monotonic() + seconds
    while (descriptor := try_lock(path)) is None:
        if time.monotonic() > give_up:
            raise SchedulerError(
                f"{path} has been locked for {seconds:.0f} s; try again, and see fuser {path}"
            )
        time.sleep(POLL_S)
    try:
        yield
    finally:
        os.close(descriptor)


def locks_work(path: Path) -> bool:
    """Say whether a file that is locked cannot be locked again.

    Raises:
        OSError: The file cannot be opened, or its filesystem knows no such locks.
    """
    first = try_lock(path)
    second = None if first is None else try_lock(path)
    for descriptor in (first, second):
        if descriptor is not None:
            os.close(descriptor)
    return second is None
