"""The pool of this machine, as cluster.yaml names it."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from pipeline.config.job_resources import JobResources
from pipeline.schedulers.local.resources import LocalResources
from pipeline.schedulers.port import Finding, Scheduler, SchedulerKind


def local_pool() -> SchedulerKind:
    """Return what cluster.yaml's `scheduler: local` stands for."""
    return SchedulerKind("pool", LocalResources, _connect, _examine)


def _connect(scratch: Path) -> Scheduler:
    from pipeline.schedulers.local.scheduler import LocalPool

    return LocalPool(scratch / "pool")


def _examine(scratch: Path, requests: Mapping[str, JobResources]) -> Iterator[Finding]:
    from pipeline.schedulers.local.examination import examine

    return examine(scratch / "pool", requests)
