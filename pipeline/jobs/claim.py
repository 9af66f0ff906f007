"""Who may submit a fingerprint now: a folder beside the record, there or not there at once.

A claim covers looking once more and handing over: seconds, or minutes where the scheduler is slow;
its owner renews it as long as that takes. It is made by renaming a folder that holds the owner's
name already: a client killed at any moment leaves a whole claim or none.
"""

import contextlib
import errno
import json
import os
import secrets
import shutil
import socket
import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from pipeline.writing import write_json

STALE_S = 300.0
"""A claim from another machine that was not renewed for so long is taken for abandoned."""
RENEW_S = 30.0
"""How often its owner renews it."""

OWNER = "owner.json"
_OWNER_KEYS = {"token", "host", "pid", "process_started", "time"}
_IS_TAKEN = (errno.EEXIST, errno.ENOTEMPTY)


@dataclass(frozen=True)
class Claim:
    """The right to submit one fingerprint.

    Attributes:
        folder: `.asl/jobs/<fingerprint>.claim`.
        token: Random, in its owner.json.
    """

    folder: Path
    token: str

    def is_held(self) -> bool:
        """Say whether nobody has taken it over; asked right before handing over."""
        owner = _read_owner(self.folder)
        return owner is not None and owner.get("token") == self.token

    def renew(self, now: float) -> None:
        """Say that its owner still needs it.

        In a file of its own name: where somebody has taken the claim over meanwhile, it is of no
        meaning to them.
        """
        with contextlib.suppress(OSError):
            write_json(self.folder / _renewal(self.token), {"time": now})

    def release(self) -> None:
        """Give it back, if it still is this process's to give."""
        if self.is_held():
            grave = self.folder.with_name(f".{self.folder.name}.{self.token}")
            with contextlib.suppress(OSError):
                os.rename(self.folder, grave)
                shutil.rmtree(grave, ignore_errors=True)


@contextlib.contextmanager
def renewed(claims: Collection[Claim], clock: Callable[[], float]) -> Iterator[None]:
    """Renew claims while a block runs: handing over may take longer than `STALE_S`.

    Args:
        claims: All of them.
        clock: Seconds since 1970.
    """
    over = threading.Event()

    def renew() -> None:
        while not over.wait(RENEW_S):
            for each in claims:
                each.renew(clock())

    thread = threading.Thread(target=renew, name="claims", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def claim(jobs: Path, fingerprint: str, now: float, stale_s: float = STALE_S) -> Claim | None:
    """Take the right to submit a fingerprint, None while somebody else has it.

    A claim whose owner is dead (on this machine) or that is older than `stale_s` is taken over;
    so is one whose owner cannot be read, by the age of its folder.

    Args:
        jobs: `.asl/jobs`.
        fingerprint: Of the run.
        now: Seconds since 1970.
        stale_s: Age from which a claim counts as abandoned.
    """
    jobs.mkdir(parents=True, exist_ok=True)
    mine = Claim(jobs / f"{fingerprint}.claim", secrets.token_hex(8))
    prepared = jobs / f".{fingerprint}.claim.{mine.token}.new"
    prepared.mkdir()
    process = psutil.Process()
    owner = {"token": mine.token, "host": socket.gethostname(), "pid": process.pid,
             "process_started": process.create_time(), "time": now}  # fmt: skip
    try:
        write_json(prepared / OWNER, owner)
        for _ in range(2):  # a second time after an abandoned one is out of the way
            if _rename_into_place(prepared, mine):
                return mine
            if not _clear_abandoned(mine.folder, prepared, now, stale_s):
                return None
        return None
    finally:
        shutil.rmtree(prepared, ignore_errors=True)


def _rename_into_place(prepared: Path, mine: Claim) -> bool:
    try:
        os.rename(prepared, mine.folder)
    except OSError as error:
        if error.errno in _IS_TAKEN or error.errno == errno.ENOENT:
            return mine.is_held()  # a network filesystem may do it and say it did not
        raise
    return mine.is_held()


def _clear_abandoned(folder: Path, prepared: Path, now: float, stale_s: float) -> bool:
    """Move an abandoned claim out of the way and say whether the way is free.

    It goes to a name made of its owner's token: of two that clear it one succeeds. Who finds that
    it has moved a claim made meanwhile puts it back; its owner looks before it hands over.
    """
    owner = _read_owner(folder)
    try:
        changed = folder.stat().st_mtime_ns
    except FileNotFoundError:
        return True
    if owner is None:  # damaged
        mark, abandoned = str(changed), now - changed / 1e9 > stale_s
    else:
        mark, abandoned = owner["token"], _is_abandoned(owner, folder, now, stale_s)
    if not abandoned:
        return False
    grave = folder.with_name(f".{folder.name}.{mark}")
    try:
        os.rename(folder, grave)
    except OSError:
        return True  # somebody else did; try again
    moved = _read_owner(grave)
    if moved is not None and moved["token"] != mark:
        with contextlib.suppress(OSError):
            os.rename(grave, folder)
        return False
    # the grave stays for a moment: as long as it is there nobody can clear this owner twice
    _remove_left_over(folder, (grave, prepared), now - stale_s)
    return True


def _remove_left_over(folder: Path, keep: tuple[Path, ...], before: float) -> None:
    """Remove other graves, and what clients had prepared that were killed long ago."""
    for path in folder.parent.glob(f".{folder.name}.*"):
        with contextlib.suppress(OSError):
            if path in keep or (path.suffix == ".new" and path.stat().st_mtime >= before):
                continue
            shutil.rmtree(path, ignore_errors=True)


def _is_abandoned(owner: dict[str, Any], folder: Path, now: float, stale_s: float) -> bool:
    if now - max(owner["time"], _last_renewal(folder, owner["token"])) > stale_s:
        return True
    if owner["host"] != socket.gethostname():
        return False
    try:
        started = psutil.Process(owner["pid"]).create_time()
    except psutil.NoSuchProcess:
        return True
    return abs(started - owner["process_started"]) > 1  # a younger process has the number now


def _renewal(token: str) -> str:
    return f"renewed-{token}.json"


def _last_renewal(folder: Path, token: str) -> float:
    """Return when its owner last renewed a claim; 0 where it never did."""
    try:
        return float(json.loads((folder / _renewal(token)).read_text(encoding="utf-8"))["time"])
    except (OSError, ValueError, TypeError, KeyError):
        return 0.0


def _read_owner(folder: Path) -> dict[str, Any] | None:
    try:
        owner = json.loads((folder / OWNER).read_text(encoding="utf-8"))
        return owner if owner.keys() >= _OWNER_KEYS else None
    except (OSError, ValueError, AttributeError):
        return None
