"""What goes wrong between loader processes and the one they load for, in one line each."""

import contextlib
import multiprocessing
import os
import re
from collections.abc import Iterator

from asl_core.errors import AslCoreError, InputError, TrainingError

SHARED_MEMORY = "/dev/shm"
REMEDY = "give the container more (docker run --shm-size=8g), or set num_workers: 0 in cluster.yaml"
LOCKS = 5
"""Of a queue and its events, rounded up."""
_ENDED = re.compile(
    r"DataLoader worker.*?(killed by signal: [\w ]+|exited unexpectedly)", re.DOTALL
)


def check_shared_memory(num_workers: int) -> None:
    """Look whether so many loader processes can be started at all.

    Raises:
        InputError: There is no room for the locks of their queues.
    """
    try:
        _ = [multiprocessing.Lock() for _ in range(LOCKS * (num_workers + 2))]
    except OSError as error:
        raise InputError(no_room(error)) from error


def no_room(error: Exception) -> str:
    """Return the line for a batch that does not fit into shared memory."""
    reason = getattr(error, "strerror", None) or " ".join(str(error).split()).rpartition(": ")[2]
    try:
        space = os.statvfs(SHARED_MEMORY)
        size = f", {space.f_blocks * space.f_frsize / 2**20:.0f} MiB"
    except OSError:
        size = ""
    return f"too little shared memory ({SHARED_MEMORY}{size}) for batches: {reason}; {REMEDY}"


@contextlib.contextmanager
def loader_errors(num_workers: int) -> Iterator[None]:
    """Turn what torch says of loader processes into one line.

    Args:
        num_workers: How many there are.

    Raises:
        AslCoreError: What a loader process has raised, without the account of where.
        InputError: They ran out of shared memory or of files.
        TrainingError: One was killed.
    """
    try:
        yield
    except AslCoreError as error:
        raise type(error)(_said(error)) from None
    except (RuntimeError, OSError) as error:
        text = str(error)
        if "Bus error" in text or "shared memory" in text:
            raise InputError(no_room(RuntimeError("Bus error"))) from error
        if "Too many open files" in text:
            raise InputError(
                f"{num_workers} loader processes need more open files than `ulimit -n` allows; "
                "raise it, or set num_workers: 0 in cluster.yaml"
            ) from error
        if (ended := _ENDED.search(text)) is not None:
            raise TrainingError(
                f"a loader process was ended from outside ({ended[1]}), perhaps for lack "
                "of memory; set a smaller num_workers in cluster.yaml and run the same command "
                "to resume"
            ) from error
        raise


def _said(error: AslCoreError) -> str:
    """Return the message itself; torch puts the loader process's traceback before it."""
    name = f"{type(error).__module__}.{type(error).__qualname__}: "
    return str(error).rpartition(name)[2].strip()
