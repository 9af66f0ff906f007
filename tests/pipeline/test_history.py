"""Nodes that are avoided and memory that is added, from what earlier starts of a run left."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.job_resources import JobResources
from pipeline.jobs.folder import JobFolder
from pipeline.jobs.job import Attempt, Terms, write_attempt
from pipeline.jobs.starts import Cause, Start, read_starts, write_start
from pipeline.schedulers.port import EndKind, SchedulerError
from pipeline.submission.history import Advice, advise, memory_hint, starts_of


class Nodes:
    """A scheduler that knows its nodes; asked for nothing else here."""

    def __init__(self, count: int = 8, ends: dict[str, list[EndKind]] | None = None) -> None:
        self.count, self.ends, self.asked = count, ends or {}, 0

    def ends_of(self, job_id: str) -> list[EndKind]:
        self.asked += 1
        return self.ends.get(job_id, [])

    def node_names(self, nodes: str) -> tuple[str, ...]:
        return tuple(nodes.split(","))

    def eligible_nodes(self, resources: JobResources) -> tuple[str, ...]:
        if self.count == 0:
            raise SchedulerError("sinfo does not answer")
        return tuple(f"n{number}" for number in range(1, self.count + 1))


def start(number: int, nodes: str, cause: Cause | None, **fields: Any) -> Start:
    return Start(
        attempt=number, restart=0, job_id=str(number), nodes=nodes, began=float(number),
        cause=cause, **{"snapshot": "s", **fields},
    )  # fmt: skip


def advice(starts: Sequence[Start], nodes: int = 8, **asked: Any) -> Advice:
    return advise(starts, JobResources(**asked), Nodes(nodes), "s")  # type: ignore[arg-type]


DIED, CRASHED, NODE = Cause.DIED, Cause.CRASHED, Cause.NODE


@pytest.mark.parametrize(
    ("history", "avoided"),
    [
        ([("n1", DIED)], []),
        ([("n1", DIED), ("n1", DIED)], ["n1"]),
        ([("n1", DIED), ("n2", DIED)], []),
        ([("n1", DIED), ("n2", DIED), ("n1", CRASHED)], ["n1"]),
        ([("n1", CRASHED), ("n1", CRASHED)], ["n1"]),
        ([("n1", CRASHED), ("n1", CRASHED), ("n2", CRASHED)], []),  # it crashes everywhere
        ([("n1", NODE)], ["n1"]),
        ([("n1", NODE), ("n2", NODE)], ["n1", "n2"]),
        *(([("n1", cause)] * 3, []) for cause in (
            Cause.PREEMPTED, Cause.TIME, Cause.STOPPED, Cause.INPUT, Cause.MEMORY, Cause.CANCELLED,
            Cause.REQUEUED, Cause.SUCCEEDED)),
    ],
)  # fmt: skip
def test_a_node_is_avoided_after_two_deaths_or_one_failure(
    history: list[tuple[str, Cause]], avoided: list[str]
) -> None:
    starts = [start(number, *each) for number, each in enumerate(history)]
    assert list(advice(starts).avoid) == avoided
    assert advice(starts, exclude_after=0).avoid == {}


def test_other_codes_crashes_say_nothing_of_a_node() -> None:
    starts = [start(1, "n1", CRASHED, snapshot="old"), start(2, "n1", CRASHED)]
    assert advice(starts).avoid == {}
    starts = [start(1, "n1", DIED, snapshot="old"), start(2, "n1", DIED)]
    assert list(advice(starts).avoid) == ["n1"]


@pytest.mark.parametrize(("nodes", "avoided"), [(1, 0), (2, 1), (3, 1), (4, 2), (0, 0)])
def test_never_more_than_half_of_the_nodes_are_avoided_and_that_is_said(
    nodes: int, avoided: int
) -> None:
    starts = [start(n, f"n{n}", NODE) for n in (1, 2)]
    found = advice(starts, nodes)
    present = {name for name in found.avoid if int(name[1:]) <= nodes}
    assert len(present) == avoided
    kept = {0: 1, 1: 1, 2: 1, 3: 1, 4: 0}[nodes]
    assert len(found.notes) == kept
    assert all("is not excluded, though it failed once" in note or nodes == 0
               for note in found.notes)  # fmt: skip


def test_of_a_job_on_several_nodes_only_those_that_had_them_all_are_blamed() -> None:
    starts = [start(1, "n1,n2", DIED), start(2, "n2,n3", DIED)]
    assert list(advice(starts, nodes=8).avoid) == ["n2"]
    starts = [start(1, "n1,n2", DIED), start(2, "n1,n2", DIED)]
    found = advise(starts, JobResources(nodes=2), Nodes(8), "s")  # type: ignore[arg-type]
    assert found.avoid == {}
    assert "not known which of n1, n2" in found.notes[0]


@pytest.mark.parametrize(
    ("had", "asked", "expected"),
    [
        (["64G"], {"memory": "64G"}, None),
        (["64G"], {"memory": "64G", "memory_most": "256G"}, "96G"),
        (["64G", "96G"], {"memory": "64G", "memory_most": "256G"}, "144G"),
        (["64G", "96G"], {"memory": "64G", "memory_most": "100G"}, "100G"),
        (["64G"], {"memory": "200G", "memory_most": "256G"}, "200G"),  # somebody raised it
        (["3G"], {"memory": "3G", "memory_most": "9G"}, "4608M"),
        ([None], {"memory_most": "256G"}, "256G"),
    ],
)
def test_after_too_little_memory_there_is_half_as_much_again(
    had: list[str | None], asked: dict[str, str], expected: str | None
) -> None:
    starts = [start(n, "n1", Cause.MEMORY, memory=size) for n, size in enumerate(had)]
    found = advice(starts, **asked)
    assert found.memory == expected
    if expected is not None:
        assert found.applied_to(JobResources(**asked)).memory == expected


def test_who_may_not_ask_for_more_is_told_what_to_raise() -> None:
    short = [start(1, "n1", Cause.MEMORY, memory="64G")]
    said = memory_hint(short, JobResources(memory="64G"))
    assert said == "out of memory with 64G: raise memory in cluster.yaml"
    most = JobResources(memory="32G", memory_most="64G")
    assert "raise memory_most" in memory_hint(short, most)
    assert memory_hint(short, JobResources(memory="32G", memory_most="128G")) == ""
    assert memory_hint([*short, start(2, "n1", DIED)], JobResources()) == ""


@pytest.mark.parametrize(
    ("left", "ends", "cause"),
    [
        ({}, [], DIED),
        ({}, [EndKind.OTHER], DIED),
        ({}, [EndKind.NODE_FAILED], NODE),
        ({}, [EndKind.OUT_OF_MEMORY], Cause.MEMORY),
        ({}, [EndKind.TIME_LIMIT], Cause.TIME),
        ({}, [EndKind.PREEMPTED], Cause.PREEMPTED),
        ({}, [EndKind.CANCELLED], Cause.CANCELLED),
        ({"signals": ("SIGTERM",)}, [], Cause.STOPPED),
        ({"cause": CRASHED, "ended": 2.0}, [EndKind.OTHER], CRASHED),
        # another process of the job was killed for its memory, and this one lost it
        ({"cause": CRASHED, "ended": 2.0}, [EndKind.OUT_OF_MEMORY], Cause.MEMORY),
        ({"cause": Cause.INPUT, "ended": 2.0}, [EndKind.OUT_OF_MEMORY], Cause.INPUT),
    ],
)  # fmt: skip
def test_what_became_of_a_start_is_kept_for_the_scheduler_forgets(
    tmp_path: Path, left: dict[str, Any], ends: list[EndKind], cause: Cause
) -> None:
    paths = JobFolder.of(tmp_path, "f")
    write(paths, 1)
    write_start(paths, start(1, "n1", **{"cause": None, **left}))
    scheduler = Nodes(ends={"1": ends})
    (found,) = starts_of([paths], scheduler)  # type: ignore[arg-type]
    assert found.cause is cause
    if ends:
        (again,) = starts_of([paths], Nodes())  # type: ignore[arg-type]
        assert again.cause is cause


def test_each_start_of_a_requeued_job_has_its_own_end(tmp_path: Path) -> None:
    paths = JobFolder.of(tmp_path, "f")
    write(paths, 1)
    for restart in range(3):
        write_start(
            paths,
            Start(attempt=1, restart=restart, job_id="1", nodes=f"n{restart}", snapshot="s",
                  began=float(restart)),
        )  # fmt: skip
    nodes = Nodes(ends={"1": [EndKind.PREEMPTED, EndKind.NODE_FAILED, EndKind.OTHER]})
    kept = starts_of([paths], nodes, write=False)  # type: ignore[arg-type]
    assert [each.cause for each in kept] == [Cause.PREEMPTED, NODE, DIED]
    assert [each.cause for each in read_starts(paths)] == [None] * 3
    # without accounting nobody knows why it was requeued: no node is blamed for it
    unknown = starts_of([paths], Nodes(ends={"1": [EndKind.OTHER]}))  # type: ignore[arg-type]
    assert [each.cause for each in unknown] == [Cause.REQUEUED, Cause.REQUEUED, DIED]


def test_the_start_of_a_job_that_lives_is_left_alone(tmp_path: Path) -> None:
    paths = JobFolder.of(tmp_path, "f")
    write(paths, 1)
    write_start(paths, start(1, "n1", None))
    scheduler = Nodes()
    (found,) = starts_of([paths], scheduler, live=True)  # type: ignore[arg-type]
    assert (found.cause, scheduler.asked) == (None, 0)


def write(paths: JobFolder, number: int) -> None:
    terms = Terms(snapshot="s", resources={}, asked={}, upstream={}, data_root="/")
    attempt = Attempt(number=number, token="t", submitted=0.0, host="h", user="u", terms=terms)
    write_attempt(paths, attempt)
