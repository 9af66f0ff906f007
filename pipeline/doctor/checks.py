"""Look for what would break a run on this machine or on its cluster, and say how to fix it."""

import dataclasses
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from asl_core.wording import counted
from pipeline.config.job_resources import JobResources
from pipeline.doctor.machine import Filesystem
from pipeline.doctor.node_probe import (
    FIRST_COUNT,
    count_gpus,
    replace_for,
    take_names,
    watch,
    write_json,
)
from pipeline.project import Project
from pipeline.schedulers.port import Finding, Level, SchedulerError, SchedulerKind

LITTLE_SPACE = 5e9  # bytes: a few checkpoints of a ViT-B
RACE_NAMES = 200
READS_S = 0.3


class Machine(Protocol):
    """What there is to know about this machine; see `pipeline.doctor.machine`."""

    @property
    def cores(self) -> int: ...
    @property
    def load(self) -> float: ...
    def filesystem(self, path: Path) -> Filesystem: ...
    def link_kinds(self, source: Path, target: Path) -> list[str]: ...
    def dvc_settings(self, root: Path) -> dict[str, str]: ...
    def dvc_cache(self, root: Path) -> Path: ...


def examine(project: Project, machine: Machine) -> Iterator[Finding]:
    """Look at this machine; starts no job."""
    project.scratch.mkdir(exist_ok=True)
    yield _gpus()
    yield _load(machine)
    yield _space(machine.filesystem(project.scratch))
    yield _exclusive_folders(project.scratch)
    yield _whole_files(project.scratch)
    yield from _dvc(project, machine)


def examine_scheduler(
    kind: SchedulerKind, scratch: Path, requests: Mapping[str, JobResources]
) -> Iterator[Finding]:
    """Look at what a scheduler says of itself and of what is asked of it; starts no job.

    Args:
        kind: Which one it is.
        scratch: The project's `.asl`.
        requests: What each stage asks for.
    """
    if kind.examine is not None:
        yield from kind.examine(scratch, requests)
        return
    try:
        kind.connect(scratch).queue()
    except SchedulerError as error:
        yield Finding("scheduler", Level.FAILURE, str(error), "try again later")
    else:
        yield Finding("scheduler", Level.OK, f"{kind.section} answers")


def _gpus() -> Finding:
    found = count_gpus()
    if isinstance(found, int):
        return Finding("GPUs here", Level.OK, f"{found}")
    if "not installed" in found:
        return Finding("GPUs here", Level.FAILURE, found, "pip install nvidia-ml-py")
    return Finding("GPUs here", Level.NOTE, f"none: {found}")


def _load(machine: Machine) -> Finding:
    detail = f"load {machine.load:.1f} on {counted(machine.cores, 'core')}"
    if machine.load <= machine.cores + 0.5:
        return Finding("processors here", Level.OK, detail)
    remedy = "wait until the load is lower: runs here would be many times slower"
    return Finding("processors here", Level.WARNING, detail, remedy)


def _space(filesystem: Filesystem) -> Finding:
    detail = f"{filesystem.free_bytes / 1e9:.0f} GB free for .asl on {filesystem.kind}"
    if filesystem.free_bytes >= LITTLE_SPACE:
        return Finding("disk", Level.OK, detail)
    return Finding("disk", Level.WARNING, detail, "run asl-pipe gc: it deletes what old runs left")


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
        "put the project on another filesystem: here one run could be submitted twice",
    )  # fmt: skip


def judge_reads(what: str, seen: Mapping[str, int], writes: int) -> Finding:
    """Judge what a reader saw of a file while it was replaced `writes` times."""
    detail = f"{seen['reads']} reads beside {writes} replacements"
    if seen["torn"] or seen["missing"] or seen["backwards"]:
        wrong = ", ".join(f"{seen[kind]} {kind}" for kind in ("torn", "missing", "backwards"))
        return Finding(
            what, Level.FAILURE, f"{detail}: {wrong}",
            "put the project on another filesystem: here job records could be read half-written",
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
            "dvc config --local core.hardlink_lock true: other locks may not work across hosts",
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
        return Finding("DVC's cache", Level.OK, "shared with the group, which can write everywhere")
    return Finding(
        "DVC's cache", Level.FAILURE,
        f"cache.shared is group, but the group cannot write to {closed[0]} "
        f"({counted(len(closed), 'folder')})",
        f"chmod -R g+rwX {cache}; find {cache} -type d -exec chmod g+s {{}} +",
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


def probe_request(request: JobResources) -> JobResources:
    """Return what the probe of a stage's nodes asks for: as little as shows what the stage meets.

    One process on one node, or on each of two; the environment and what else the scheduler asks
    for, a partition, are the stage's.
    """
    return dataclasses.replace(
        request, nodes=min(request.nodes, 2), tasks_per_node=1, cpus=1,
        gpus=min(request.gpus, 1), memory=None, time=5, warning=None,
    )  # fmt: skip
