"""A process of a job other than the first. Writes under the job's folder, no record."""

import contextlib
import logging
import socket
import traceback
from typing import Any

from asl_core.engine.records import redact
from asl_core.errors import InterruptedRun
from pipeline.actions.job_process import DONE, FAILED, JobFailure, JobProcess, read_json
from pipeline.actions.perform import help_perform
from pipeline.jobs.record import write_json
from pipeline.jobs.state import ERROR_CHARACTERS, Status, read_state

logger = logging.getLogger(__name__)

READY_S = 600.0
"""For so long it waits for the first process to lay out the inputs."""
NOTICED_S = 20.0
"""For so long it waits for the first process to take note of a failure."""


class Helper(JobProcess):
    """Another process of a job: it computes, and leaves a word if it fails."""

    def run(self) -> int:
        """Compute to the end and return the exit code."""
        try:
            return self._run()
        except (InterruptedRun, KeyboardInterrupt):
            self.signals.handler.quiet = True
            return DONE  # anything else would end the first process before it has requeued the job
        except BaseException as error:
            self.signals.handler.quiet = True
            text = "".join(traceback.format_exception(error))
            logger.error("%s", text)
            self._leave_word(redact(text)[-ERROR_CHARACTERS:])
            return FAILED

    def _run(self) -> int:
        self.signals.listen()
        ready = self._wait_until_ready()
        if ready["done"]:
            return DONE
        document = self.job.document
        run = self.stage_run(ready["fingerprint"], document)
        help_perform(run, self.services.load, self.place.rank)
        return DONE

    def _wait_until_ready(self) -> dict[str, Any]:
        give_up = self.services.clock() + READY_S
        while True:
            ready = read_json(self.paths.ready)
            if {name: ready.get(name) for name in self.start} == self.start:
                return ready
            if self.services.clock() > give_up:
                raise JobFailure(f"the first process was not ready within {READY_S:.0f} s")
            self.services.pause(0.2)

    def _leave_word(self, error: str) -> None:
        """Say what happened, and stay until the first process has taken note of it.

        The scheduler kills the whole job as soon as one process has failed.
        """
        content = {**self.start, "host": socket.gethostname(), "error": error}
        with contextlib.suppress(OSError):
            write_json(self.paths.rank_error(self.place.rank), content)
        give_up = self.services.clock() + NOTICED_S
        while self.services.clock() < give_up:
            state = read_state(self.paths)
            if state and state.token == self.attempt.token and state.status is Status.FAILED:
                return
            self.services.pause(0.5)
