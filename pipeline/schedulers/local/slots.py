"""The machine's GPUs and processors, one file each: whoever has locked a file has the slot.

They are the user's, not a project's: jobs of two projects never get the same GPU. The lock is
inherited by all processes of a job, so that a GPU is taken as long as any of them lives.
"""

import contextlib
import hashlib
import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from pipeline.schedulers.local.locks import locked, try_lock

VARIABLE = "ASL_POOL_SLOTS"
"""Names the folder; on a filesystem of this machine. The same for all projects, or they take the
same GPUs."""

LOCK_S = 60.0


def slots_folder(environment: Mapping[str, str]) -> Path:
    """Return the folder of this machine's slots; a home may be shared by several machines."""
    if named := environment.get(VARIABLE):
        return Path(named).absolute()
    state = environment.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "asl-pipe" / "slots" / socket.gethostname()


def note_pool(slots: Path, pool: Path) -> None:
    """Let jobs of other projects know of a pool whose jobs may wait for their slots.

    Raises:
        OSError: The folder cannot be written.
    """
    known = slots / "pools"
    known.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        (known / hashlib.sha256(os.fsencode(pool)).hexdigest()[:16]).symlink_to(pool)


def known_pools(slots: Path) -> list[Path]:
    """Return the pools that have used these slots and are still there."""
    with contextlib.suppress(OSError):
        return [link.readlink() for link in sorted((slots / "pools").iterdir()) if link.is_dir()]
    return []


def gpu_slot(name: str) -> str:
    """Return the name of a GPU's slot, given its UUID or number."""
    return f"gpu-{name.replace('/', '_')}"


def cpu_slot(number: int) -> str:
    """Return the name of a processor's slot."""
    return f"cpu-{number}"


@contextlib.contextmanager
def free_slots(folder: Path, names: Iterable[str]) -> Iterator[dict[str, int]]:
    """Take all slots that are free for the duration of a block; nobody else takes any meanwhile.

    Args:
        folder: Of the slots; made if missing.
        names: Of the slots that are of interest.

    Returns:
        Name -> descriptor. A process that inherits it keeps the slot. All are closed here.

    Raises:
        SchedulerError: Somebody else is taking slots for a minute.
        OSError: The folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / "lock", LOCK_S):
        taken: dict[str, int] = {}
        try:
            for name in names:
                descriptor = try_lock(folder / name)
                if descriptor is not None:
                    taken[name] = descriptor
            yield dict(taken)
        finally:
            for descriptor in taken.values():
                os.close(descriptor)
