"""Shows stage runs without waiting for it: a process of its own brings the journal."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

from pipeline.errors import TrackingError

LESS_URGENT = 10  # niceness: the stage that runs meanwhile has the cores first


class BackgroundTracker:
    """Starts `asl-pipe sync FINGERPRINT` for a run it is given, and leaves it alone.

    The process outlives this one. What it has to say goes to the same standard error.

    Args:
        folder: Where it works, inside the project; absent: the current folder.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._follower: subprocess.Popen[bytes] | None = None

    def follow(self, journal: Path, out: Path) -> None:
        """Start bringing a run into the store while its journal is written, to its end.

        Args:
            journal: The run's journal, `.asl/jobs/<fingerprint>/journal`.
            out: Where the artifacts that it names will be.

        Raises:
            TrackingError: The system starts no more processes.
        """
        self._follower = self._start(journal.parent.name, "--follow", "--outputs", str(out))

    def ingest(self, journal: Path, out: Path) -> "subprocess.Popen[bytes]":
        """Start bringing a run into the store, unless a process does that already; do not wait.

        Args:
            journal: The run's journal, `.asl/jobs/<fingerprint>/journal`.
            out: Folder with the artifacts that the journal names.

        Raises:
            TrackingError: The system starts no more processes.
        """
        if self._follower is not None and self._follower.poll() is None:
            return self._follower  # it ends with the journal
        return self._start(journal.parent.name, "--outputs", str(out))

    def _start(self, fingerprint: str, *options: str) -> "subprocess.Popen[bytes]":
        # -P: the code that runs now, whatever `pipeline` the current folder may have.
        command = [sys.executable, "-P", "-m", "pipeline", "sync", fingerprint, *options]
        try:
            # A session of its own: Ctrl-C at the next stage does not reach it. Only standard error
            # is shared: who reads our output waits for its end.
            process = subprocess.Popen(
                command, cwd=self._folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise TrackingError(f"no process could be started: {error.strerror}") from error
        own = os.getpriority(os.PRIO_PROCESS, 0)
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, process.pid, min(19, own + LESS_URGENT))
        return process
