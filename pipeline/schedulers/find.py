"""The scheduler that a project's jobs go to, as cluster.yaml or the environment names it."""

from pathlib import Path

from pipeline.config.cluster import load_scheduler_name
from pipeline.config.schedulers import load_settings
from pipeline.errors import UserError
from pipeline.schedulers.port import Scheduler, SchedulerKind


def find_scheduler(scratch: Path) -> Scheduler:
    """Return the scheduler of a project.

    Args:
        scratch: The project's `.asl`, beside its cluster.yaml.

    Raises:
        UserError: There is none of that name.
    """
    return find_kind(scratch.parent / "cluster.yaml").connect(scratch)


def find_kind(cluster_file: Path) -> SchedulerKind:
    """Return which scheduler it is.

    Raises:
        UserError: There is none of that name.
    """
    name = load_scheduler_name(cluster_file)
    try:
        kind = load_settings(name)
    except ValueError as error:
        raise UserError(f"{cluster_file}: scheduler: {error}") from error
    if not isinstance(kind, SchedulerKind):
        raise UserError(f"{cluster_file}: scheduler: {name} does not return a SchedulerKind")
    return kind
