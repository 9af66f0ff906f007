"""Slurm, as cluster.yaml names it."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from pipeline.config.job_resources import JobResources
from pipeline.schedulers.port import Finding, SchedulerKind
from pipeline.schedulers.slurm.resources import SlurmResources
from pipeline.schedulers.slurm.scheduler import SlurmScheduler


def slurm() -> SchedulerKind:
    """Return what cluster.yaml's `scheduler: slurm` stands for."""
    return SchedulerKind("slurm", SlurmResources, _connect, _examine)


def _connect(scratch: Path) -> SlurmScheduler:
    return SlurmScheduler(scratch / "slurm")


def _examine(scratch: Path, requests: Mapping[str, JobResources]) -> Iterator[Finding]:
    from pipeline.schedulers.slurm.examination import examine

    return examine(_connect(scratch), requests)
