"""What earlier starts of a run say of nodes and memory, and what its next attempt does about it.

Nodes: after `exclude_after` starts that died on a node, or crashed there and nowhere else, the
next attempt avoids it; one failure that the scheduler itself reports is enough. Never are more than
half of a job's nodes avoided, or it could wait for ever. Memory: half as much again, up to
`memory_most`.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from asl_core.wording import counted
from pipeline.config.job_resources import JobResources, megabytes
from pipeline.jobs.folder import JobFolder
from pipeline.jobs.job import read_attempts
from pipeline.jobs.starts import Cause, Start, read_starts, write_start
from pipeline.schedulers.port import EndKind, KnowsNodes, Scheduler, SchedulerError

GROWTH = 1.5
"""Of memory, from one attempt to the next."""

_SAID = {
    EndKind.NODE_FAILED: Cause.NODE,
    EndKind.OUT_OF_MEMORY: Cause.MEMORY,
    EndKind.TIME_LIMIT: Cause.TIME,
    EndKind.PREEMPTED: Cause.PREEMPTED,
    EndKind.CANCELLED: Cause.CANCELLED,
}
_MAY_BE_OF_THE_NODE = (Cause.NODE, Cause.DIED, Cause.CRASHED)


@dataclass(frozen=True)
class Advice:
    """What the next attempt of a run is to do differently.

    Attributes:
        avoid: Node -> why.
        memory: To ask for on each node; None: as cluster.yaml has it.
        notes: What could not be done, for people.
    """

    avoid: dict[str, str] = dataclasses.field(default_factory=dict)
    memory: str | None = None
    notes: tuple[str, ...] = ()

    def applied_to(self, asked: JobResources) -> JobResources:
        """Return what the next attempt asks for."""
        return asked if self.memory is None else dataclasses.replace(asked, memory=self.memory)


def starts_of(
    folders: Iterable[JobFolder], scheduler: Scheduler, *, live: bool = False, write: bool = True
) -> list[Start]:
    """Return the starts of a run, each with its cause as far as anybody knows it.

    Args:
        folders: Records under which the run has worked.
        scheduler: Asked once for each start of which its own process does not say enough.
        live: The newest attempt may still run.
        write: Keep what the scheduler says: it forgets.
    """
    found: list[Start] = []
    for paths in folders:
        attempts = read_attempts(paths)
        starts = read_starts(paths)
        for position, start in enumerate(starts):
            later = starts[position + 1 :]
            is_last = not any(each.attempt == start.attempt for each in later)
            may_live = live and is_last and attempts and attempts[-1].number == start.attempt
            if start.asked or may_live or start.cause not in (None, Cause.CRASHED):
                found.append(start)
                continue
            cause, certain = _cause(start, scheduler, is_last=is_last)
            known = dataclasses.replace(start, cause=cause, asked=certain)
            if write and certain:
                write_start(paths, known)
            found.append(known)
    return sorted(found, key=lambda start: start.began)


def _cause(start: Start, scheduler: Scheduler, *, is_last: bool) -> tuple[Cause, bool]:
    """Return why a start ended, and whether the scheduler has been heard on that."""
    ends: list[EndKind] = []
    if isinstance(scheduler, KnowsNodes) and start.job_id is not None:
        ends = scheduler.ends_of(start.job_id)
    said: Cause | None = None
    if len(ends) > start.restart:
        said = _SAID.get(ends[start.restart])
    elif is_last and ends:
        said = _SAID.get(ends[-1])
    if start.cause is Cause.CRASHED:  # the word of its own process, unless there is a better one
        better = said if said in (Cause.MEMORY, Cause.NODE) else None
        return better or Cause.CRASHED, True
    if said is not None:
        return said, True
    if start.signals:
        return Cause.STOPPED, bool(ends) or not is_last
    return (Cause.DIED if is_last else Cause.REQUEUED), bool(ends) or not is_last


def advise(
    starts: Sequence[Start],
    asked: JobResources,
    scheduler: Scheduler,
    snapshot: str,
) -> Advice:
    """Return what the next attempt of a run does differently.

    Args:
        starts: Of the run, with their causes.
        asked: What cluster.yaml says that it asks for.
        scheduler: Names nodes.
        snapshot: Digest of the code that it will run: other code's crashes say nothing of a node.
    """
    avoid, notes = _nodes_to_avoid(starts, asked, scheduler, snapshot)
    return Advice(avoid, more_memory(starts, asked), notes)


def more_memory(starts: Sequence[Start], asked: JobResources) -> str | None:
    """Return the memory to ask for after a run had too little; None: as cluster.yaml has it."""
    short = [start for start in starts if start.cause is Cause.MEMORY]
    if not short or asked.memory_most is None:
        return None
    most = megabytes(asked.memory_most)
    if any(start.memory is None for start in short) and asked.memory is None:
        return asked.memory_most  # from the scheduler's default, which is not known
    had = max((megabytes(start.memory) for start in short if start.memory), default=0)
    wanted = max(min(most, int(had * GROWTH)), megabytes(asked.memory or "0"))
    return f"{wanted // 1024}G" if wanted % 1024 == 0 else f"{wanted}M"


def lacks_memory(starts: Sequence[Start], asked: JobResources) -> bool:
    """Say whether a run had too little memory and may not be given more."""
    last = starts[-1] if starts else None
    if last is None or last.cause is not Cause.MEMORY:
        return False
    if asked.memory_most is None:
        return True
    had = None if last.memory is None else megabytes(last.memory)
    return had is not None and (had == 0 or had >= megabytes(asked.memory_most))  # 0: all there is


def _nodes_to_avoid(
    starts: Sequence[Start], asked: JobResources, scheduler: Scheduler, snapshot: str
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return nodes with the reason, and what is said instead of avoiding others."""
    if asked.exclude_after == 0 or not isinstance(scheduler, KnowsNodes):
        return {}, ()
    blamed = [start for start in starts if start.cause in _MAY_BE_OF_THE_NODE]
    crashed = {start.nodes for start in blamed if start.cause is Cause.CRASHED}
    counted_starts: Counter[str] = Counter()
    causes: dict[str, Counter[str]] = {}
    try:
        for start in blamed:
            is_crash = start.cause is Cause.CRASHED
            if is_crash and (len(crashed) > 1 or start.snapshot != snapshot):
                continue  # it crashes wherever it is, or other code did
            names = scheduler.node_names(start.nodes)
            certain = start.cause is Cause.NODE and len(names) == 1
            for name in names:
                counted_starts[name] += asked.exclude_after if certain else 1
                causes.setdefault(name, Counter())[str(start.cause)] += 1
        guilty = [name for name, times in counted_starts.most_common()
                  if times >= asked.exclude_after]  # fmt: skip
        if not guilty:
            return {}, ()
        why = {name: _in_words(causes[name]) for name in guilty}
        eligible = scheduler.eligible_nodes(asked)
    except SchedulerError as error:
        return {}, (f"no node is excluded: {error}",)
    if asked.nodes > 1 and len(guilty) >= asked.nodes:
        return {}, (f"no node is excluded: it is not known which of {', '.join(guilty)} it was",)
    present = [name for name in guilty if name in eligible]
    gone = [name for name in guilty if name not in eligible]  # down: they cost nothing
    half = len({*eligible, *guilty}) // 2
    room = max(0, min(half - len(gone), len(eligible) - asked.nodes))
    kept = present[room:]
    notes = tuple(
        f"{name} is not excluded, though {why[name]}: {counted(len(eligible), 'node')} "
        f"{'is' if len(eligible) == 1 else 'are'} left, and half of them must be"
        for name in kept
    )
    return {name: why[name] for name in (*gone[:half], *present[:room])}, notes


def _in_words(causes: Mapping[str, int]) -> str:
    """Return what happened on a node: `it failed once`, `the run died there 2 times`."""
    words = {Cause.NODE: "it failed", Cause.DIED: "the run died there",
             Cause.CRASHED: "the run crashed there"}  # fmt: skip
    said = (f"{words[Cause(name)]} {'once' if times == 1 else f'{times} times'}"
            for name, times in causes.items())  # fmt: skip
    return " and ".join(said)


def memory_hint(starts: Sequence[Start], asked: JobResources) -> str:
    """Return what to do about too little memory; empty where that is not it."""
    if not lacks_memory(starts, asked):
        return ""
    had = starts[-1].memory
    what = "memory" if asked.memory_most is None else "memory_most"
    return f"out of memory{f' with {had}' if had else ''}: raise {what} in cluster.yaml"
