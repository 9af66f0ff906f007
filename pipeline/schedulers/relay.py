"""A scheduler that is asked from inside a container, where its programs and files are not.

The process outside answers: one JSON object a line, over a socket that only the process inside has
(its standard input), or, where the scheduler enters the container, one in a folder of their own.
Works for every scheduler: what travels are calls of the port.
"""

import contextlib
import dataclasses
import json
import os
import socket
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TextIO

from pipeline.config.cluster import job_resources
from pipeline.errors import AslPipeError
from pipeline.schedulers.port import (
    BatchJob,
    JobPhase,
    NoSchedulerError,
    QueuedJob,
    Scheduler,
    SchedulerError,
    SubmitError,
)

SOCKET_VARIABLE = "ASL_OUTSIDE"
"""Where the process outside listens: the number of a descriptor, or a path."""

PYTHON_VARIABLE = "ASL_OUTSIDE_PYTHON"
"""The interpreter of the process outside: jobs that are submitted from inside start with it."""

READY, TAGS = "ready", "tags"
"""Asked besides the calls of the port: the process inside handles signals now; what is the
container."""

LISTENS_S, POLL_S = 30.0, 0.2
"""How long who answers may need until it listens, and how often that is tried."""

CALLS = frozenset({"submit", "queue", "cancel", "requeue", "send_signal", "explain",
                   "remove_old_submissions"})  # fmt: skip


class RelayedScheduler:
    """A scheduler, asked through the process outside.

    Args:
        place: What `SOCKET_VARIABLE` says.
        scheduler: Who answers there, as cluster.yaml names it.
    """

    def __init__(self, place: str, scheduler: str) -> None:
        self._place, self._scheduler = place, scheduler
        # a signal that raises in the one who asks must not leave an answer for the next question
        self._asking = ThreadPoolExecutor(max_workers=1)
        self._streams: tuple[TextIO, TextIO] | None = None
        if place.isdigit():  # at once: what the descriptor is, others of this process may change
            self._streams = _streams(_from_descriptor(int(place)))

    def submit(self, jobs: Sequence[BatchJob]) -> list[str]:
        """Hand jobs over; see the port."""
        try:
            return self._call("submit", [_written(job) for job in jobs])
        except SubmitError:
            raise
        except SchedulerError as error:
            raise SubmitError(str(error), ambiguous=True) from error

    def queue(self) -> list[QueuedJob]:
        """Return this user's jobs; see the port."""
        lines: list[dict[str, Any]] = self._call("queue")
        return [QueuedJob(phase=JobPhase(line.pop("phase")), **line) for line in lines]

    def cancel(self, job_ids: Sequence[str]) -> None:
        """End jobs; see the port."""
        self._call("cancel", list(job_ids))

    def requeue(self, job_id: str) -> None:
        """Put a running job back into the queue; see the port."""
        self._call("requeue", job_id)

    def send_signal(self, job_id: str, name: str) -> None:
        """Send a signal to all tasks of a job; see the port."""
        self._call("send_signal", job_id, name)

    def explain(self, job_id: str) -> str | None:
        """Return why a job ended; see the port."""
        return self._call("explain", job_id)

    def remove_old_submissions(self, needed: Collection[Path] = ()) -> int:
        """Remove the files of old submissions; see the port."""
        return self._call("remove_old_submissions", [str(path) for path in needed])

    def say_ready(self) -> None:
        """Say that signals may come."""
        self._call(READY)

    def close(self) -> None:
        """Say that nothing more will be asked."""
        for stream in self._streams or ():
            with contextlib.suppress(OSError):
                stream.close()

    def tags(self) -> dict[str, str]:
        """Return what is known of the container outside.

        Raises:
            SchedulerError: Nobody answers.
        """
        return self._call(TAGS)

    def _call(self, name: str, *arguments: object) -> Any:
        """Ask, and return the answer.

        Raises:
            SchedulerError: As the scheduler has raised it, or nobody answers.
        """
        question = json.dumps({"call": name, "arguments": arguments, "scheduler": self._scheduler})
        try:
            line = self._asking.submit(self._exchange, question).result()
        except (OSError, ValueError) as error:
            raise SchedulerError(f"the process outside the container: {error}") from error
        if not line:
            raise SchedulerError("the process outside the container is gone")
        try:
            answer = json.loads(line)
        except ValueError as error:  # it died as it wrote
            raise SchedulerError("the process outside the container is gone") from error
        if "error" in answer:
            raise _raised(answer["error"])
        return answer["value"]

    def _exchange(self, question: str) -> str:
        """Ask one question and read its answer; one thread does this, question by question."""
        reading, writing = self._connected()
        writing.write(question + "\n")
        writing.flush()
        return reading.readline()

    def _connected(self) -> tuple[TextIO, TextIO]:
        if self._streams is None:
            self._streams = _streams(_from_path(Path(self._place)))
        return self._streams


def relayed(environment: Mapping[str, str], scheduler: str) -> RelayedScheduler | None:
    """Return how to ask the scheduler from inside a container; None outside.

    Args:
        environment: Of the process.
        scheduler: As cluster.yaml names it.
    """
    place = environment.get(SOCKET_VARIABLE)
    return None if place is None else RelayedScheduler(place, scheduler)


def answer_all(
    connection: socket.socket,
    scheduler: Callable[[], Scheduler],
    also: Mapping[str, Callable[[], object]],
) -> None:
    """Answer questions until the other side is gone.

    Args:
        connection: To the process inside.
        scheduler: Finds the scheduler; called when it is first needed.
        also: What else may be asked.
    """
    found: list[Scheduler] = []
    with contextlib.suppress(OSError, ValueError), connection:
        reading, writing = _streams(connection)
        for line in reading:
            question = json.loads(line)
            try:
                if question["call"] in also:
                    value = also[question["call"]]()
                else:
                    if not found:
                        found.append(scheduler())
                    value = _ask(found[0], question)
                answer: dict[str, object] = {"value": value}
            except Exception as error:  # what the scheduler raises is for whoever asks
                answer = {"error": _described(error)}
            writing.write(json.dumps(answer) + "\n")
            writing.flush()


def _ask(scheduler: Scheduler, question: Mapping[str, Any]) -> object:
    """Call the scheduler and return the answer as plain values."""
    name, arguments = question["call"], question["arguments"]
    if name not in CALLS:
        raise SchedulerError(f"got the call {name!r}, expected one of {', '.join(sorted(CALLS))}")
    match name:
        case "submit":
            return scheduler.submit([_read(job, question["scheduler"]) for job in arguments[0]])
        case "queue":
            return [dataclasses.asdict(job) for job in scheduler.queue()]
        case "remove_old_submissions":
            return scheduler.remove_old_submissions([Path(path) for path in arguments[0]])
        case _:
            return getattr(scheduler, name)(*arguments)


def _written(job: BatchJob) -> dict[str, Any]:
    return {**dataclasses.asdict(job), "folder": str(job.folder)}


def _read(raw: Mapping[str, Any], scheduler: str) -> BatchJob:
    values: dict[str, Any] = dict(raw)
    for name in ("command", "setup", "after", "after_any", "avoid"):
        values[name] = tuple(values[name])
    values["folder"] = Path(raw["folder"])
    values["resources"] = job_resources(scheduler, raw["resources"])
    return BatchJob(**values)


def _described(error: Exception) -> dict[str, object]:
    kind = next((k for k in (SubmitError, NoSchedulerError) if isinstance(error, k)), None)
    said = str(error) if isinstance(error, AslPipeError) else f"{type(error).__name__}: {error}"
    found: dict[str, object] = {"kind": kind.__name__ if kind else "", "message": said}
    if isinstance(error, SubmitError):
        found |= {"ambiguous": error.ambiguous, "job_ids": list(error.job_ids)}
    return found


def _raised(error: Mapping[str, Any]) -> SchedulerError:
    match error["kind"]:
        case "SubmitError":
            return SubmitError(
                error["message"], ambiguous=error["ambiguous"], job_ids=error["job_ids"]
            )
        case "NoSchedulerError":
            return NoSchedulerError(error["message"])
        case _:
            return SchedulerError(error["message"])


def _from_descriptor(number: int) -> socket.socket:
    """Take a descriptor over; programs that this process starts find an empty one in its place."""
    connection = socket.socket(fileno=os.dup(number))
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, number)
    os.close(empty)
    return connection


def _from_path(path: Path) -> socket.socket:
    """Connect to who was started beside this process, and may not listen yet.

    Raises:
        OSError: Nobody listens.
    """
    give_up = time.monotonic() + LISTENS_S
    while True:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(str(path))
        except OSError:
            connection.close()
            if time.monotonic() > give_up or not path.parent.is_dir():
                raise
            time.sleep(POLL_S)
        else:
            return connection


def _streams(connection: socket.socket) -> tuple[TextIO, TextIO]:
    reading = connection.makefile("r", encoding="utf-8")
    writing = connection.makefile("w", encoding="utf-8")
    connection.close()  # it is open as long as they are
    return reading, writing
