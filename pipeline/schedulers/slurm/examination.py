"""What `asl-pipe doctor` looks at where jobs go to Slurm."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

from pipeline.config.job_resources import JobResources
from pipeline.schedulers.port import Finding, Level, QueuedJob, SchedulerError

COMMANDS = ("sbatch", "srun", "squeue", "scontrol", "scancel")
EARLY_S = 60
"""Slurm may warn of a time limit so much earlier than it was asked to."""
SHORT_GRACE_S = 15


class Controller(Protocol):
    """What is asked: a `SlurmScheduler`."""

    def queue(self) -> list[QueuedJob]: ...
    def configuration(self) -> dict[str, str]: ...
    def try_out(self, resources: JobResources) -> str: ...


def examine(
    controller: Controller,
    requests: Mapping[str, JobResources],
    which: Callable[[str], str | None] = shutil.which,
) -> Iterator[Finding]:
    """Look at what the cluster says of itself and of what cluster.yaml asks of it.

    Args:
        controller: The cluster.
        requests: What stages ask of it.
        which: Finds a command.
    """
    missing = [name for name in COMMANDS if which(name) is None]
    yield _commands(missing)
    if missing:
        return
    try:
        configured = controller.configuration()
        controller.queue()
    except SchedulerError as error:
        remedy = "try again later; if it persists, ask whoever runs the cluster"
        yield Finding("Slurm's controller", Level.FAILURE, str(error), remedy)
        return
    version = configured.get("SLURM_VERSION", "unknown")
    yield Finding("Slurm's controller", Level.OK, f"answers; version {version}")
    yield from judge_configuration(configured)
    for stages, request in _distinct(requests):
        yield _request(controller, stages, request)
        yield from judge_time(stages, request)


def _commands(missing: list[str]) -> Finding:
    if not missing:
        return Finding("Slurm's commands", Level.OK, ", ".join(COMMANDS))
    if len(missing) == len(COMMANDS):
        return Finding(
            "Slurm's commands", Level.NOTE, "none: stages run on this machine, with dvc repro"
        )
    return Finding(
        "Slurm's commands", Level.FAILURE, f"{', '.join(missing)} not on PATH",
        "module load slurm, or install slurm-client",
    )  # fmt: skip


def judge_configuration(configured: Mapping[str, str]) -> Iterator[Finding]:
    """Judge settings of Slurm that decide how runs are interrupted."""
    storage = configured.get("AccountingStorageType", "")
    kept = "no sacct" if storage.endswith("none") else "sacct"
    yield Finding("accounting", Level.OK, f"{kept}; states come from records and squeue")
    grace = _leading_number(configured.get("KillWait", ""))
    detail = f"KillWait {grace} s: from SIGTERM to the end"
    if grace is not None and grace < SHORT_GRACE_S:
        remedy = (
            "a checkpoint that takes longer is lost and the run resumes from the previous one: "
            "lower checkpoint_minutes in cluster.yaml"
        )
        yield Finding("grace", Level.WARNING, detail, remedy)
    else:
        yield Finding("grace", Level.OK, detail)
    mode = configured.get("PreemptMode", "OFF")
    if "CANCEL" in mode or "SUSPEND" in mode:
        remedy = "preempted jobs do not come back by themselves: submit them again"
        yield Finding("preemption", Level.WARNING, f"PreemptMode {mode}", remedy)
    else:
        yield Finding("preemption", Level.OK, f"PreemptMode {mode}")


def _leading_number(text: str) -> int | None:
    word = text.split(" ")[0]
    return int(word) if word.isdigit() else None


def _distinct(requests: Mapping[str, JobResources]) -> Iterator[tuple[list[str], JobResources]]:
    """Return the stages that ask for the same, with what they ask for."""
    rest = list(requests)
    while rest:
        stages = [stage for stage in rest if requests[stage] == requests[rest[0]]]
        yield stages, requests[stages[0]]
        rest = [stage for stage in rest if stage not in stages]


def _request(controller: Controller, stages: list[str], request: JobResources) -> Finding:
    what = f"cluster.yaml for {', '.join(stages)}"
    try:
        return Finding(what, Level.OK, controller.try_out(request))
    except SchedulerError as error:
        return Finding(what, Level.FAILURE, str(error), "change slurm: in cluster.yaml; see sinfo")


def judge_time(stages: list[str], request: JobResources) -> Iterator[Finding]:
    """Say it when a time limit leaves no time to work."""
    limit = request.time_seconds
    if limit is None:
        return
    least = limit - request.warning_seconds - EARLY_S
    if least < request.warning_seconds:
        yield Finding(
            f"time for {', '.join(stages)}", Level.WARNING,
            f"limit {limit} s, warning {request.warning_seconds} s before it and up to {EARLY_S} s "
            f"earlier: an attempt may have {max(least, 0)} s",
            "set a longer time, or a shorter warning, in cluster.yaml",
        )  # fmt: skip
