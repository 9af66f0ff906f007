"""What a job asks of a scheduler, whichever that is. Changes no result and no identity."""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from pydantic import ConfigDict

from asl_core.wording import counted
from pipeline.config.files import STRICT

WARNING_SECONDS = 120
"""Long enough to finish a step and write a checkpoint; short limits get a quarter of themselves."""

_MEMORY = re.compile(r"\d+[KMGT]?")
_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<clock>\d+(?::\d{1,2}){0,2})")


@dataclass(frozen=True, kw_only=True)
class JobResources:
    """What every scheduler understands; one of its own adds fields, and checks of them."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    nodes: int = 1
    tasks_per_node: int = 1
    """Processes on each node; with GPUs one for each of them."""
    gpus: int = 0
    """Per node."""
    cpus: int = 1
    """Per task: the process and its loader workers."""
    memory: str | None = None
    """Per node: `64G`; absent: the scheduler's default."""
    time: str | int | None = None
    """Limit of one attempt: minutes, `24:00:00` or `2-12:00:00`; absent: the scheduler's. A longer
    run continues from its checkpoint in the next attempt."""
    warning: int | None = None
    """Seconds before the limit at which the job is told to save its work. Absent: a quarter of the
    limit, at most `WARNING_SECONDS`."""
    setup: tuple[str, ...] = ()
    """Lines of shell before the stage, on the first node: `module load ...`. The first that fails
    ends the job (`set -e`)."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Environment variables of the stage."""
    max_restarts: int = 20
    """After preemption or a time limit; one more is a failure."""
    max_queued: int = 1000
    """Submission pauses while the queue holds this many of the user's asl-pipe jobs, counted over
    all stages and projects."""
    requeue: Literal["allowed", "resubmit"] = "allowed"
    """allowed: an interrupted job goes back into the queue itself; resubmit: as a new job."""

    def __post_init__(self) -> None:
        """Check what types do not say.

        Raises:
            ValueError: Names the setting, the value and what is expected.
        """
        for name, least in (("nodes", 1), ("tasks_per_node", 1), ("gpus", 0), ("cpus", 1),
                            ("warning", 1), ("max_restarts", 0), ("max_queued", 1)):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"got {name} {value}, expected {least} or more")
        if self.gpus and self.tasks_per_node > self.gpus:
            raise ValueError(
                f"got tasks_per_node {self.tasks_per_node} on {counted(self.gpus, 'GPU')} a "
                "node, expected one GPU or more for each task"
            )
        if self.memory is not None and not _MEMORY.fullmatch(self.memory):
            raise ValueError(f"got memory {self.memory!r}, expected a size such as 64G")
        if self.time is not None and not _TIME.fullmatch(str(self.time)):
            raise ValueError(f"got time {self.time!r}, expected minutes, HH:MM:SS or D-HH:MM:SS")
        for name in self.env:
            if not name.isidentifier():
                raise ValueError(f"got {name!r} in env, expected the name of a variable")

    @property
    def time_seconds(self) -> int | None:
        """The time limit; None for the scheduler's."""
        return None if self.time is None else _seconds(str(self.time))

    @property
    def warning_seconds(self) -> int:
        """How long before the time limit the job is told to save its work."""
        if self.warning is not None:
            return self.warning
        limit = self.time_seconds
        return WARNING_SECONDS if limit is None else min(WARNING_SECONDS, max(1, limit // 4))

    def setup_lines(self) -> tuple[str, ...]:
        """Return the lines of shell before the stage: variables first, then `setup`."""
        exports = (f"export {name}={shlex.quote(value)}" for name, value in self.env.items())
        return (*exports, *self.setup)


def _seconds(limit: str) -> int:
    """Return a time limit in seconds: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S."""
    match = _TIME.fullmatch(limit)
    if match is None:
        raise ValueError(f"got time {limit!r}")
    parts = [int(part) for part in match["clock"].split(":")]
    if match["days"] is not None:
        hours, minutes, seconds = (*parts, 0, 0)[:3]
        return ((int(match["days"]) * 24 + hours) * 60 + minutes) * 60 + seconds
    if len(parts) == 1:
        return parts[0] * 60
    total = 0
    for part in parts:
        total = total * 60 + part
    return total
