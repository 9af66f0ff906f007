"""What `asl-pipe doctor` looks at where jobs go to the pool of this machine."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from asl_core.wording import counted
from pipeline.config.job_resources import JobResources
from pipeline.schedulers.local.jobs import PoolJob
from pipeline.schedulers.local.locks import locks_work
from pipeline.schedulers.local.machine import find_gpus, processors, this_host, usable_gpus
from pipeline.schedulers.local.scheduler import LocalPool
from pipeline.schedulers.local.slots import VARIABLE, cpu_slot, free_slots, gpu_slot, slots_folder
from pipeline.schedulers.port import BatchJob, Finding, Level, SchedulerError


def examine(folder: Path, requests: Mapping[str, JobResources]) -> Iterator[Finding]:
    """Look at the pool's files, at this machine's slots and at what stages ask of them.

    Args:
        folder: `.asl/pool`.
        requests: What stages ask for.
    """
    scheduler = LocalPool(folder)
    yield _locks(slots_folder(os.environ))
    yield _slots(slots_folder(os.environ))
    yield from _pool(scheduler)
    yield from _unused_gpus(requests)
    rest = list(requests)
    while rest:
        asked = requests[rest[0]]
        stages = [stage for stage in rest if requests[stage] == asked]
        rest = [stage for stage in rest if stage not in stages]
        yield _request(scheduler, ", ".join(stages), asked)


def _locks(slots: Path) -> Finding:
    """Try whether a file there that is locked cannot be locked again."""
    remedy = f"set {VARIABLE} to a folder on a disk of this machine, for all projects alike"
    trial = slots / "trial"
    try:
        slots.mkdir(parents=True, exist_ok=True)
        works = locks_work(trial)
    except OSError as error:
        return Finding("the pool's slots", Level.FAILURE, str(error), remedy)
    if works:
        return Finding("the pool's slots", Level.OK, f"{slots}: a lock has one holder")
    text = f"{slots}: a file that is locked can be locked again; two jobs could get one GPU"
    return Finding("the pool's slots", Level.FAILURE, text, remedy)


def _slots(folder: Path) -> Finding:
    gpus, cpus = usable_gpus(None, find_gpus(), os.environ), processors()
    names = [*(gpu_slot(name) for name in gpus), *(cpu_slot(number) for number in range(cpus))]
    try:
        with free_slots(folder, names) as free:
            left = sum(name.startswith("gpu-") for name in free)
            text = (
                f"{counted(len(gpus), 'GPU')}, {left} free; {counted(cpus, 'CPU slot')}, "
                f"{len(free) - left} free"
            )
    except (OSError, SchedulerError) as error:
        return Finding("slots here", Level.FAILURE, str(error))
    return Finding("slots here", Level.OK, text)


def _unused_gpus(requests: Mapping[str, JobResources]) -> Iterator[Finding]:
    """Say it when jobs would compute on processors beside idle GPUs."""
    gpus = usable_gpus(None, find_gpus(), os.environ)
    if gpus and requests and not any(asked.gpus for asked in requests.values()):
        text = f"{counted(len(gpus), 'GPU')}, and no stage asks for one: jobs see none"
        remedy = "pool: {default: {gpus: 1}} in cluster.yaml"
        yield Finding("GPUs of the pool", Level.WARNING, text, remedy)


def _pool(scheduler: LocalPool) -> Iterator[Finding]:
    try:
        scheduler.queue()
        jobs = scheduler.pool.jobs()
    except SchedulerError as error:
        yield Finding("the pool", Level.FAILURE, str(error), "see what the line names")
        return
    live = [job for job in jobs if not job.has_ended]
    here = [job for job in live if job.host == this_host()]
    running = sum(job.is_live for job in here)
    yield Finding(
        "the pool", Level.OK,
        f"{counted(running, 'job')} run, {len(here) - running} wait, on {this_host()}",
    )  # fmt: skip
    yield from _elsewhere([job for job in live if job not in here])


def _elsewhere(jobs: list[PoolJob]) -> Iterator[Finding]:
    for host in sorted({job.host for job in jobs}):
        ids = ", ".join(job.job_id for job in jobs if job.host == host)
        yield Finding(
            "the pool", Level.WARNING, f"jobs {ids} are in the pool of {host}",
            f"they go on there: asl-pipe status on {host}; or cancel them and submit here",
        )  # fmt: skip


def _request(scheduler: LocalPool, stages: str, asked: JobResources) -> Finding:
    what = f"cluster.yaml for {stages}"
    lacking = scheduler.lacking(BatchJob(stages, Path(), "", (), asked))
    if lacking is not None:
        return Finding(what, Level.FAILURE, lacking)
    return Finding(what, Level.OK, "this machine has what they ask for")
