"""Which schedulers there are, by name; one is imported only where cluster.yaml names it."""

import os
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.config.job_resources import JobResources
from pipeline.config.named import load_named

SCHEDULERS = {
    "slurm": "pipeline.schedulers.slurm.kind:slurm",
    "local": "pipeline.schedulers.local.kind:local_pool",
}
"""What `scheduler:` of cluster.yaml may name: a function without arguments that returns a
`pipeline.schedulers.port.SchedulerKind`. A lab names one of its own as `module:function`."""

DEFAULT = "slurm"

VARIABLE = "ASL_SCHEDULER"
"""Wins over `scheduler:` of cluster.yaml; jobs find their own scheduler in it."""


@dataclass(frozen=True)
class JobSettings:
    """What cluster.yaml may say of a scheduler's jobs.

    Attributes:
        section: Its key in cluster.yaml.
        resources: What a stage's settings there become.
    """

    section: str
    resources: type[JobResources]


def chosen(read: Callable[[], object]) -> str:
    """Return the scheduler's name: the environment's, else what is read, else the default."""
    named = os.environ.get(VARIABLE) or read()
    return named if isinstance(named, str) else DEFAULT


def load_settings(name: str) -> JobSettings:
    """Import what a name of `SCHEDULERS`, or `module:function`, stands for.

    Raises:
        ValueError: Nothing of the kind; says what is expected.
    """
    kind = load_named(name, SCHEDULERS)
    if not isinstance(kind, JobSettings):
        raise ValueError(f"{name} returns {type(kind).__name__}, expected a SchedulerKind")
    return kind
