"""Which schedulers there are, by name; one is imported only where cluster.yaml names it."""

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.config.job_resources import JobResources
from pipeline.config.suggest import hint, one_of

SCHEDULERS = {"slurm": "pipeline.schedulers.slurm.kind:slurm"}
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
    target = SCHEDULERS.get(name, name)
    module, _, function = target.partition(":")
    if not (module and function):
        raise ValueError(
            f"got {name!r}, expected one of {one_of(SCHEDULERS)}, or module:function"
            f"{hint(name, SCHEDULERS)}"
        )
    try:
        made: Callable[[], object] = getattr(importlib.import_module(module), function)
        kind = made()
    except (ImportError, AttributeError, TypeError) as error:
        raise ValueError(f"{name} cannot be loaded: {error}") from error
    if not isinstance(kind, JobSettings):
        raise ValueError(f"{name} returns {type(kind).__name__}, expected a SchedulerKind")
    return kind
