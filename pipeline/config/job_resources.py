"""What a job asks of a scheduler, whichever that is. Changes no result and no identity."""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, ConfigDict

from asl_core.wording import counted
from pipeline.config.container import PYXIS, Container, written_short
from pipeline.config.files import STRICT

WARNING_SECONDS = 120
"""Long enough to finish a step and write a checkpoint; short limits get a quarter of themselves."""

_MEMORY = re.compile(r"\d+[KMGT]?")
_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<clock>\d+(?::\d{1,2}){0,2})")


@dataclass(frozen=True, kw_only=True)
class JobResources:
    """What every scheduler understands; one of its own adds fields, and checks of them."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    of_work: ClassVar[frozenset[str]] = frozenset(
        {"nodes", "tasks_per_node", "gpus", "cpus", "memory", "time", "warning", "max_running",
         "retries", "memory_most", "container"}
    )  # fmt: skip
    """Settings that say how large a stage's work is, and nothing of where jobs of the lab go."""

    has_pyxis: ClassVar[bool] = False
    """Whether the scheduler itself can put processes into containers."""

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
    max_running: int | None = None
    """Of the jobs that are submitted together and ask the same, so many run at once."""
    retries: int = 0
    """How often a run whose job died or crashed is submitted again without anybody being asked, by
    a small job that waits for the others. Not after a mistake in the input, nor after `cancel`."""
    exclude_after: int = 2
    """After so many starts of a run that died on a node, or crashed there and nowhere else, its
    next attempt avoids the node; after one where the scheduler says that it failed. 0: never."""
    memory_most: str | None = None
    """After a job ran out of memory its next attempt asks for half as much again, up to this; the
    small job of `retries` submits it."""
    container: Annotated[Container | None, BeforeValidator(written_short)] = None
    """Image in which the stage runs: /path/asl.sif, or {image: ..., runtime: ..., binds: [...]};
    all of it: Container in pipeline/config/container.py."""

    def __post_init__(self) -> None:
        """Check what types do not say.

        Raises:
            ValueError: Names the setting, the value and what is expected.
        """
        for name, least in (("nodes", 1), ("tasks_per_node", 1), ("gpus", 0), ("cpus", 1),
                            ("warning", 1), ("max_restarts", 0), ("max_queued", 1),
                            ("max_running", 1), ("retries", 0), ("exclude_after", 0)):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"got {name} {value}, expected {least} or more")
        if self.gpus and self.tasks_per_node > self.gpus:
            raise ValueError(
                f"got tasks_per_node {self.tasks_per_node} on {counted(self.gpus, 'GPU')} a "
                "node, expected one GPU or more for each task"
            )
        for name in ("memory", "memory_most"):
            size = getattr(self, name)
            if size is not None and not _MEMORY.fullmatch(size):
                raise ValueError(f"got {name} {size!r}, expected a size such as 64G")
        most, memory = self.memory_most, self.memory
        if most is not None and memory is not None and megabytes(most) < megabytes(memory):
            raise ValueError(
                f"got memory_most {most}, less than memory {memory}; raise it, or remove it"
            )
        if self.time is not None and not _TIME.fullmatch(str(self.time)):
            raise ValueError(f"got time {self.time!r}, expected minutes, HH:MM:SS or D-HH:MM:SS")
        if self.container is not None and self.container.runtime == PYXIS and not self.has_pyxis:
            raise ValueError(
                "got container.runtime pyxis, which this scheduler has not; set apptainer, or "
                "singularity"
            )
        for name in self.env:
            if not name.isidentifier():
                raise ValueError(f"got {name!r} in env, expected the name of a variable")

    @classmethod
    def fields_of(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return settings of cluster.yaml as fields; some may be written in more than one way."""
        return dict(settings)

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


def megabytes(size: str) -> int:
    """Return a size of memory in units of 2**20 bytes, rounded up; a number without unit is one.

    Raises:
        ValueError: It is no size.
    """
    if not _MEMORY.fullmatch(size):
        raise ValueError(f"got memory {size!r}, expected a size such as 64G")
    number, unit = int(size.rstrip("KMGT")), size[-1]
    if unit == "K":
        return -(-number // 1024)
    return number * {"G": 1024, "T": 1024**2}.get(unit, 1)


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
