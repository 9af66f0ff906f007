"""Look for what would spoil a run on this machine or on its cluster, and say how to mend it."""

import dataclasses
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from pipeline.config.cluster import SlurmResources, load_slurm
from pipeline.doctor.node_probe import (
    FIRST_COUNT,
    count_gpus,
    replace_for,
    take_names,
    watch,
    write_json,
)
from pipeline.project import Project
from pipeline.schedulers.port import Cluster, SchedulerError
from pipeline.stages.table import STAGES

SLURM_COMMANDS = ("sbatch", "srun", "squeue", "scontrol", "scancel")
EARLY_S = 60
"""Slurm may warn of a time limit so much earlier than it was asked to."""
SHORT_GRACE_S = 15
LITTLE_SPACE = 5e9  # bytes: a few checkpoints of a ViT-B
RACE_NAMES = 200
READS_S = 0.3


class Level(StrEnum):
    """How much a finding matters."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    FAILURE = "failure"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: `shared filesystem`.
        level: How much it matters.
        detail: What was found.
        remedy: What to do about it; empty if there is nothing to do.
    """

    what: str
    level: Level
    detail: str
    remedy: str = ""


class Filesystem(Protocol):
    """Where a path lies."""

    @property
    def kind(self) -> str: ...
    @property
    def free_bytes(self) -> int: ...
    @property
    def is_shared(self) -> bool: ...


class Machine(Protocol):
    """What there is to know about this machine; see `pipeline.doctor.machine`."""

    @property
    def cores(self) -> int: ...
    @property
    def load(self) -> float: ...
    def has(self, program: str) -> bool: ...
    def filesystem(self, path: Path) -> Filesystem: ...
    def link_kinds(self, source: Path, target: Path) -> list[str]: ...
    def dvc_settings(self, root: Path) -> dict[str, str]: ...
    def dvc_cache(self, root: Path) -> Path: ...


def examine(project: Project, machine: Machine, cluster: Cluster) -> Iterator[Finding]:
    """Look at this machine and at what the cluster says of itself; starts no job.

    Raises:
        UserError: cluster.yaml is wrong.
    """
    requests = {stage: load_slurm(project.cluster_file, stage) for stage in STAGES}
    project.scratch.mkdir(exist_ok=True)
    yield _gpus()
    yield _load(machine)
    yield _space(machine.filesystem(project.scratch))
    yield _exclusive_folders(project.scratch)
    yield _whole_files(project.scratch)
    yield from _dvc(project, machine)
    missing = [name for name in SLURM_COMMANDS if not machine.has(name)]
    yield _commands(missing)
    if not missing:
        yield from _slurm(cluster, requests)


def _gpus() -> Finding:
    found = count_gpus()
    if isinstance(found, int):
        return Finding("GPUs here", Level.OK, f"{found}")
    if "not installed" in found:
        return Finding("GPUs here", Level.FAILURE, found, "pip install nvidia-ml-py")
    return Finding("GPUs here", Level.NOTE, f"none: {found}")


def _load(machine: Machine) -> Finding:
    detail = f"load {machine.load:.1f} on {machine.cores} cores"
    if machine.load <= machine.cores + 0.5:
        return Finding("processors here", Level.OK, detail)
    remedy = "wait, or expect runs here to take many times longer: waiting threads cost the others"
    return Finding("processors here", Level.WARNING, detail, remedy)


def _space(filesystem: Filesystem) -> Finding:
    detail = f"{filesystem.free_bytes / 1e9:.0f} GB free for .asl on {filesystem.kind}"
    if filesystem.free_bytes >= LITTLE_SPACE:
        return Finding("disk", Level.OK, detail)
    return Finding("disk", Level.WARNING, detail, "asl-pipe gc removes what ended runs have left")


def _exclusive_folders(scratch: Path) -> Finding:
    """Let threads make the same folders at once: each must have one maker."""
    names = [f"name-{index}" for index in range(RACE_NAMES)]
    with _scratch(scratch) as folder, ThreadPoolExecutor(4) as pool:
        start = time.time() + 0.1
        tries = [pool.submit(take_names, folder, names, start, 0.001) for _ in range(4)]
        return judge_race("mkdir here", [attempt.result() for attempt in tries], names)


def _whole_files(scratch: Path) -> Finding:
    """Read a file that is replaced meanwhile: it must be there, whole, always."""
    with _scratch(scratch) as folder, ThreadPoolExecutor(1) as pool:
        path = folder / "file"
        write_json(path, FIRST_COUNT)
        writing = pool.submit(replace_for, path, READS_S)
        seen = watch(path, READS_S)
        return judge_reads("rename here", seen, writing.result())


def judge_race(what: str, won: Iterable[Iterable[str]], names: Iterable[str]) -> Finding:
    """Judge who made which of the folders that all tried to make at once."""
    makers: dict[str, int] = dict.fromkeys(names, 0)
    for mine in won:
        for name in mine:
            makers[name] += 1
    wrong = sum(count != 1 for count in makers.values())
    if not wrong:
        return Finding(what, Level.OK, f"each of {len(makers)} contended folders had one maker")
    return Finding(
        what, Level.FAILURE, f"{wrong} of {len(makers)} contended folders had no or several makers",
        "put the project on another filesystem: here two submissions may both believe to be first",
    )  # fmt: skip


def judge_reads(what: str, seen: Mapping[str, int], writes: int) -> Finding:
    """Judge what a reader saw of a file that was replaced so often."""
    detail = f"{seen['reads']} reads beside {writes} replacements"
    if seen["torn"] or seen["missing"] or seen["backwards"]:
        wrong = ", ".join(f"{seen[kind]} {kind}" for kind in ("torn", "missing", "backwards"))
        return Finding(
            what, Level.FAILURE, f"{detail}: {wrong}",
            "put the project on another filesystem: records of jobs would be read half written",
        )  # fmt: skip
    return Finding(what, Level.OK, f"{detail}: whole each time")


def _dvc(project: Project, machine: Machine) -> Iterator[Finding]:
    """Look at DVC's settings for the filesystem that the project is on."""
    root, settings = project.root, machine.dvc_settings(project.root)
    cache, filesystem = machine.dvc_cache(root), machine.filesystem(root)
    shared = filesystem.is_shared
    locks_by_link = settings.get("core.hardlink_lock", "false") == "true"
    detail = f"core.hardlink_lock {str(locks_by_link).lower()} on {filesystem.kind}"
    if shared and not locks_by_link:
        yield Finding(
            "DVC's lock", Level.WARNING, detail,
            "dvc config --local core.hardlink_lock true: other locks may not hold between hosts",
        )  # fmt: skip
    else:
        yield Finding("DVC's lock", Level.OK, detail)
    cache.mkdir(parents=True, exist_ok=True)
    yield _links(settings, machine.link_kinds(cache, root), cache)
    yield _modes(settings, cache)


def _links(settings: Mapping[str, str], possible: list[str], cache: Path) -> Finding:
    """Say how outputs get from the cache into the workspace."""
    configured = settings.get("cache.type", "reflink,copy").replace('"', "").split(",")
    chosen = next((kind.strip() for kind in configured if kind.strip() in possible), "copy")
    detail = f"cache.type {','.join(configured)}: {chosen} works from {cache}"
    if chosen != "copy":
        return Finding("DVC's links", Level.OK, detail)
    links = [kind for kind in possible if kind in ("hardlink", "symlink")]
    remedy = f"dvc config cache.type reflink,{','.join(links)},copy: weights are copied otherwise"
    return Finding("DVC's links", Level.WARNING if links else Level.NOTE, detail, remedy)


def _modes(settings: Mapping[str, str], cache: Path) -> Finding:
    """Say whether a group that shares the cache can write to all of it."""
    if settings.get("cache.shared") != "group":
        return Finding("DVC's cache", Level.OK, "for one user (no cache.shared)")
    folders = [cache, *(path for path in cache.rglob("*") if path.is_dir())]
    closed = [path for path in folders if path.stat().st_mode & 0o2070 != 0o2070]
    if not closed:
        return Finding("DVC's cache", Level.OK, "shared with the group, which may write everywhere")
    return Finding(
        "DVC's cache", Level.FAILURE,
        f"cache.shared is group, but the group cannot write to {closed[0]} "
        f"({len(closed)} folders)",
        f"chmod -R g+rwX {cache}; find {cache} -type d -exec chmod g+s {{}} +",
    )  # fmt: skip


def _commands(missing: list[str]) -> Finding:
    if not missing:
        return Finding("Slurm's commands", Level.OK, ", ".join(SLURM_COMMANDS))
    if len(missing) == len(SLURM_COMMANDS):
        return Finding(
            "Slurm's commands", Level.NOTE, "none: stages run on this machine, with dvc repro"
        )
    return Finding(
        "Slurm's commands", Level.FAILURE, f"{', '.join(missing)} not on PATH",
        "module load slurm, or install slurm-client",
    )  # fmt: skip


def _slurm(cluster: Cluster, requests: Mapping[str, SlurmResources]) -> Iterator[Finding]:
    """Look at what the cluster says of itself and of what cluster.yaml asks of it."""
    try:
        configured = cluster.configuration()
        cluster.queue()
    except SchedulerError as error:
        remedy = "try again later; if it stays so, ask whoever runs the cluster"
        yield Finding("Slurm's controller", Level.FAILURE, str(error), remedy)
        return
    version = configured.get("SLURM_VERSION", "unknown")
    yield Finding("Slurm's controller", Level.OK, f"answers; version {version}")
    yield from judge_configuration(configured)
    for stages, request in _distinct(requests):
        yield _request(cluster, stages, request)
        yield from judge_time(stages, request)


def judge_configuration(configured: Mapping[str, str]) -> Iterator[Finding]:
    """Judge settings of Slurm that decide how runs are interrupted."""
    storage = configured.get("AccountingStorageType", "")
    kept = "no sacct" if storage.endswith("none") else "sacct"
    yield Finding("accounting", Level.OK, f"{kept}; states come from records and squeue")
    grace = _leading_number(configured.get("KillWait", ""))
    detail = f"KillWait {grace} s: from SIGTERM to the end"
    if grace is not None and grace < SHORT_GRACE_S:
        remedy = (
            "a checkpoint that takes longer is lost and the run goes on from the one before: "
            "lower checkpoint_minutes in cluster.yaml"
        )
        yield Finding("grace", Level.WARNING, detail, remedy)
    else:
        yield Finding("grace", Level.OK, detail)
    mode = configured.get("PreemptMode", "OFF")
    if "CANCEL" in mode or "SUSPEND" in mode:
        remedy = (
            "jobs that are preempted do not come back by themselves: asl-pipe submit them again"
        )
        yield Finding("preemption", Level.WARNING, f"PreemptMode {mode}", remedy)
    else:
        yield Finding("preemption", Level.OK, f"PreemptMode {mode}")


def _leading_number(text: str) -> int | None:
    word = text.split(" ")[0]
    return int(word) if word.isdigit() else None


def _distinct(
    requests: Mapping[str, SlurmResources],
) -> Iterator[tuple[list[str], SlurmResources]]:
    """Return the stages that ask for the same, with what they ask for."""
    rest = list(requests)
    while rest:
        stages = [stage for stage in rest if requests[stage] == requests[rest[0]]]
        yield stages, requests[stages[0]]
        rest = [stage for stage in rest if stage not in stages]


def _request(cluster: Cluster, stages: list[str], request: SlurmResources) -> Finding:
    what = f"cluster.yaml for {', '.join(stages)}"
    try:
        return Finding(what, Level.OK, cluster.try_out(request))
    except SchedulerError as error:
        return Finding(what, Level.FAILURE, str(error), "change slurm: in cluster.yaml; see sinfo")


def judge_time(stages: list[str], request: SlurmResources) -> Iterator[Finding]:
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


class _scratch:
    """A folder that is there for the duration of a block."""

    def __init__(self, parent: Path) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="doctor-", dir=parent))

    def __enter__(self) -> Path:
        return self.folder

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def worst(findings: Iterable[Finding]) -> Level:
    """Return the level of the worst finding."""
    order = list(Level)
    return max((finding.level for finding in findings), key=order.index, default=Level.OK)


def probe_request(request: SlurmResources) -> SlurmResources:
    """Return what the probe of a stage's nodes asks for: as little as shows what the stage meets.

    One process on one node, or on each of two; the partition, account, constraint, environment and
    options are the stage's.
    """
    return dataclasses.replace(
        request, nodes=min(request.nodes, 2), tasks_per_node=1, cpus=1,
        gpus=min(request.gpus, 1), memory=None, time=5, warning=None,
    )  # fmt: skip
