"""Keeps a job's state.json up to date while it runs. Writes that file, and one in reserve."""

import contextlib
import dataclasses
import errno
import logging
import math
import threading
from collections.abc import Callable
from typing import Any

from pipeline.errors import SupersededError
from pipeline.jobs.folder import JobFolder
from pipeline.jobs.progress import Progress
from pipeline.jobs.state import HEARTBEAT_S, JobState, write_state

logger = logging.getLogger(__name__)

RESERVE_BYTES = 1 << 16
"""Given back when the disk is full, so that there is room to say so."""

TICK_S = 1.0


class Reporter:
    """Writes what a job says of itself, from one thread at a time.

    Args:
        paths: The job's record.
        state: How it begins.
        check: Raises SupersededError when a newer start has taken over; asked before each write.
        clock: Seconds since 1970.
    """

    def __init__(
        self,
        paths: JobFolder,
        state: JobState,
        check: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        self.paths, self.state, self._check, self._clock = paths, state, check, clock
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._reserve = paths.folder / ".reserve"

    def begin(self) -> None:
        """Write the first state and set a little room aside.

        Raises:
            SupersededError: A newer start has taken over.
        """
        self.update()
        with contextlib.suppress(OSError):
            self._reserve.write_bytes(b"\0" * RESERVE_BYTES)

    def update(self, **changes: Any) -> None:
        """Write the state with changes and a new heartbeat, even on a full disk.

        Raises:
            SupersededError: A newer start has taken over; nothing is written.
            OSError: It could not be written.
        """
        with self._lock:
            self._check()
            self.state = dataclasses.replace(self.state, **changes, heartbeat=self._clock())
            try:
                write_state(self.paths, self.state)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                self._reserve.unlink(missing_ok=True)
                write_state(self.paths, self.state)

    def keep_beating(
        self,
        look: Callable[[], dict[str, Any]],
        on_tick: Callable[[], None],
        on_superseded: Callable[[], None],
        every_s: float = HEARTBEAT_S,
    ) -> None:
        """Write a heartbeat now and then until `end`.

        Args:
            look: What to write with it.
            on_tick: Called about every second.
            on_superseded: Called once when a newer start has taken over.
            every_s: Seconds between heartbeats.
        """

        def beat() -> None:
            waited = 0.0
            while not self._stop.wait(min(TICK_S, every_s)):
                on_tick()
                waited += min(TICK_S, every_s)
                if waited < every_s:
                    continue
                waited = 0.0
                try:
                    self.update(**look())
                except SupersededError:
                    on_superseded()
                    return
                except OSError as error:
                    logger.warning("no heartbeat: %s", error)

        self._thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Stop beating."""
        self._stop.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def give_back(self) -> None:
        """Remove what was set aside."""
        self._reserve.unlink(missing_ok=True)


def as_fields(progress: Progress) -> dict[str, Any]:
    """Return progress as fields of the state; what is not finite is left out."""
    values = dataclasses.asdict(progress)
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v
            for k, v in values.items()}  # fmt: skip
