"""A process of a job other than the first. Writes under the job's folder, no record."""

import contextlib
import logging
import socket
import traceback
from pathlib import Path
from typing import Any

from asl_core.engine.journal import redact
from asl_core.errors import InterruptedRun
from pipeline.execution.perform import help_perform
from pipeline.jobs.job import newer_attempt
from pipeline.jobs.state import ERROR_CHARACTERS, JobState, RunStatus, read_state
from pipeline.worker.process import DONE, FAILED, JobFailure, JobProcess
from pipeline.writing import write_json

logger = logging.getLogger(__name__)

_ENDED_ALIKE = (RunStatus.SUCCEEDED, RunStatus.INTERRUPTED, RunStatus.STOPPED)
"""What the first process says where all have ended as they were meant to."""

READY_S = 600.0
"""How long it waits for the first process, counted from its last sign of life."""
NOTICED_S = 20.0
"""How long it waits for the first process to notice a failure."""


class Helper(JobProcess):
    """Another process of a job: it computes, and leaves a word if it fails or is stopped."""

    def run(self) -> int:
        """Compute to the end and return the exit code."""
        try:
            return self._run()
        except BaseException as error:
            self.signals.handler.quiet = True
            return self._end(error)

    def is_being_stopped(self) -> bool:
        """Say whether a signal has come, here or to another process."""
        return bool(self.signals.names or self.stopped_peers() or self._is_over())

    def _run(self) -> int:
        self.signals.listen()
        self._tell_gpus()
        ready = self._wait_until_ready()
        if ready is None or ready["done"]:
            return DONE
        document = self.job.document
        run = self.stage_run(ready["fingerprint"], document)
        help_perform(run, self.load, self.place.rank, self.place.local_rank)
        return DONE

    def _end(self, error: BaseException) -> int:
        """Leave a word; success, where anything else would end the first process too early."""
        if isinstance(error, InterruptedRun | KeyboardInterrupt):
            self._leave(self.paths.rank_stopped(self.place.rank), signals=self.signals.names)
            return DONE
        text = redact("".join(traceback.format_exception(error)))
        logger.error("%s", text)
        if self._is_over():
            return DONE
        self._leave(self.paths.rank_error(self.place.rank), error=text[-ERROR_CHARACTERS:])
        return self._wait_until_noticed()

    def _wait_until_ready(self) -> dict[str, Any] | None:
        """Return what the first process says when inputs are laid out; None if it ended before.

        Where inputs are copied that takes as long as it takes: its heartbeat tells.
        """
        seen, give_up = None, self.services.clock() + READY_S
        while True:
            ready = self.read_own(self.paths.ready)
            if ready:
                return ready
            if self._is_over():
                return None
            state = self._first_process()
            if state is not None and state.heartbeat != seen:
                seen, give_up = state.heartbeat, self.services.clock() + READY_S
            if self.services.clock() > give_up:
                raise JobFailure(f"no sign of the first process for {READY_S:.0f} s")
            self.services.pause(0.2)

    def _first_process(self) -> JobState | None:
        """Return what the first process of this start says of itself."""
        state = read_state(self.paths)
        if state is None or state.token != self.attempt.token:
            return None
        return state if state.restarts == self.attempt.restarts + self.place.restart else None

    def _is_over(self) -> bool:
        """Say whether the first process has ended well, or has handed the run over."""
        state = self._first_process()
        if state is not None and state.status in _ENDED_ALIKE:
            return True
        return newer_attempt(self.paths, self.attempt.number) is not None

    def _tell_gpus(self) -> None:
        uuids = self.services.gpus().uuids
        self._leave(self.paths.rank_gpus(self.place.rank), gpus=uuids)

    def _leave(self, path: Path, **content: object) -> None:
        with contextlib.suppress(OSError):
            write_json(path, {**self.start, "host": socket.gethostname(), **content})

    def _wait_until_noticed(self) -> int:
        """Stay until the first process has taken note of a failure, and return the exit code.

        The scheduler kills the whole job as soon as one process has failed.
        """
        give_up = self.services.clock() + NOTICED_S
        while self.services.clock() < give_up:
            state = self._first_process()
            if state is not None and state.status is RunStatus.FAILED:
                break
            if self._is_over():
                return DONE
            self.services.pause(0.5)
        return FAILED
