"""What becomes of a job of the local pool, and which one starts. No process is started."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.cluster import load_job_request
from pipeline.errors import UserError
from pipeline.schedulers.local import dispatch as dispatching
from pipeline.schedulers.local import examination, scheduler
from pipeline.schedulers.local.folder import PoolFolder
from pipeline.schedulers.local.jobs import (
    CANCEL,
    CANCELLED,
    COMPLETED,
    FAILED,
    PENDING,
    REQUEUE,
    RUNNING,
    TIMEOUT,
    Ending,
    PoolJob,
    Readiness,
    after_ending,
    as_document,
    from_document,
)
from pipeline.schedulers.local.machine import usable_gpus
from pipeline.schedulers.local.resources import LocalResources
from pipeline.schedulers.port import Level

A, B = "GPU-aaaa", "GPU-bbbb"


def job(job_id: str = "1", **changes: Any) -> PoolJob:
    return PoolJob(
        **{
            "job_id": job_id, "host": "here", "uid": 0, "name": "a", "folder": "/a",
            "comment": "", "command": ("true",), "setup": (), "after": (), "after_any": (),
            "tasks": 1, "cpus": 1, "gpus": 0, "usable_gpus": (), "cpu_slots": 4,
            "slots_folder": "/s", "time_s": None, "warning_s": 1, "grace_s": 1,
            "max_running": None, "max_restarts": 3, "crash_limit": 2, "may_be_requeued": True,
            "submitted": 0.0, **changes,
        }
    )  # fmt: skip


def running(**changes: Any) -> PoolJob:
    return job(**{"state": RUNNING, "started": 100.0, "slots": ("cpu-0",), **changes})


@pytest.mark.parametrize(
    ("order", "ending", "state"),
    [
        (None, Ending(0), COMPLETED),
        (None, Ending(1), FAILED),
        (None, Ending(2, told_to_stop=True), PENDING),
        (None, Ending(75), PENDING),
        (None, Ending(-9), PENDING),
        (None, Ending(None), PENDING),
        (None, Ending(75, past_limit=True), PENDING),
        (None, Ending(-15, past_limit=True), TIMEOUT),
        (None, Ending(0, told_to_stop=True), COMPLETED),
        (REQUEUE, Ending(75), PENDING),
        (REQUEUE, Ending(0), COMPLETED),
        (CANCEL, Ending(75), CANCELLED),
        (CANCEL, Ending(None), CANCELLED),
        (CANCEL, Ending(0), CANCELLED),
    ],
)
def test_how_a_job_ends_decides_what_becomes_of_it(
    order: str | None, ending: Ending, state: str
) -> None:
    found = after_ending(running(order=order), ending, now=500.0)
    assert found.state == state
    assert found.restarts == (1 if state == PENDING else 0)
    assert (found.order, found.slots, found.processes) == (None, (), ())
    assert (found.ended is None) == (state == PENDING)


def test_quick_deaths_in_a_row_are_a_failure_and_slow_ones_are_not() -> None:
    once = after_ending(running(), Ending(-9), now=101.0)
    assert (once.state, once.crashes) == (PENDING, 1)
    twice = after_ending(dataclasses.replace(once, state=RUNNING, started=200.0), Ending(-9), 201.0)
    assert twice.state == FAILED
    assert twice.reason == "died by SIGKILL; 2 times in a row within a minute of its start"
    slow = after_ending(dataclasses.replace(once, state=RUNNING, started=200.0), Ending(-9), 261.0)
    assert (slow.state, slow.crashes) == (PENDING, 0)


def test_a_job_is_put_back_no_more_often_than_it_may() -> None:
    found = after_ending(running(restarts=3, order=REQUEUE), Ending(75), now=900.0)
    assert (found.state, found.reason) == (
        FAILED, "requeued after 3 restarts; max_restarts is 3",
    )  # fmt: skip


def test_a_file_of_another_version_is_read_and_of_none_refused() -> None:
    wanted = running(processes=((7, 1.5),), usable_gpus=(A,))
    assert from_document({**as_document(wanted), "newer": 1}) == wanted
    older = as_document(wanted)
    del older["crashes"], older["after_any"]
    assert from_document(older) == wanted
    for broken in ({}, {**as_document(wanted), "state": "LIMBO"}):
        with pytest.raises(ValueError, match="is no job of this pool"):
            from_document(broken)


def test_a_job_waits_for_what_it_needs_and_never_for_what_failed() -> None:
    jobs = [
        job("1", state=COMPLETED), job("2", state=FAILED), job("3", after=("1",)),
        job("4", after=("2",)), job("5", after=("4",)), job("6", after=("99",)),
        job("7", after=("3",)), job("8", after_any=("2", "5")), job("9", after_any=("3",)),
    ]  # fmt: skip
    known = {each.job_id: each for each in jobs}
    readiness = Readiness(jobs)
    free = [i for i, each in known.items() if not readiness.obstacle(each, 0.0)]
    assert [i for i in free if known[i].state == PENDING] == ["3", "8"]
    assert [i for i, each in known.items() if readiness.can_never_start(each)] == ["4", "5", "6"]
    assert readiness.obstacle(known["7"], 0.0) == "needs job 3, which is PENDING"


def test_so_many_of_an_array_run_at_once() -> None:
    jobs = [job(f"4_{i}", max_running=2, state=RUNNING if i < 1 else PENDING) for i in range(3)]
    readiness = Readiness(jobs)
    assert readiness.obstacle(jobs[1], 0.0) == ""
    readiness.count(jobs[1])
    assert readiness.obstacle(jobs[2], 0.0) == "max_running is 2"
    assert Readiness([*jobs, job("5", max_running=2)]).obstacle(job("5"), 0.0) == ""


def test_what_an_earlier_job_lacks_no_later_one_gets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: dict[str, list[str]] = {}

    def start(_: PoolFolder, job: PoolJob, slots: dict[str, int]) -> bool:
        started[job.job_id] = list(slots)
        return True

    monkeypatch.setattr(dispatching, "_start", start)
    gpus = {"usable_gpus": (A, B), "cpu_slots": 3}
    jobs = [
        job("1", gpus=2, **gpus),  # one is taken
        job("2", gpus=1, **gpus),  # would take the other from it, again and again
        job("3", **gpus),
        job("4", cpus=2, **gpus),  # one processor is left
        job("5", **gpus),
    ]
    free = {"gpu-GPU-bbbb": 3, "cpu-0": 4, "cpu-1": 5}
    dispatching._start_in_order(PoolFolder(tmp_path), jobs, Readiness(jobs), free)
    assert started == {"3": ["cpu-0"]}


@pytest.mark.parametrize(
    ("visible", "environment", "names"),
    [
        (None, {}, (A, B)),
        (None, {"CUDA_VISIBLE_DEVICES": "1"}, (B,)),
        (None, {"CUDA_VISIBLE_DEVICES": "GPU-bb"}, (B,)),
        (None, {"CUDA_VISIBLE_DEVICES": ""}, ()),
        (None, {"CUDA_VISIBLE_DEVICES": "-1"}, ()),
        ((1, A), {}, (B, A)),
        ((1, A), {"CUDA_VISIBLE_DEVICES": "0"}, (A,)),
        (("MIG-x",), {}, ("MIG-x",)),
        # in a job CUDA_VISIBLE_DEVICES is the job's own
        (None, {"CUDA_VISIBLE_DEVICES": A, "ASL_POOL_GPUS": f"{A},{B}"}, (A, B)),
    ],
)
def test_gpus_are_those_of_the_settings_that_the_submitter_sees(
    visible: Any, environment: dict[str, str], names: tuple[str, ...]
) -> None:
    assert usable_gpus(visible, [A, B], environment) == names


def test_doctor_says_that_gpus_stay_idle_and_what_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examination, "find_gpus", lambda: [A, B])
    monkeypatch.setattr(scheduler, "find_gpus", lambda: [A, B])
    monkeypatch.setenv("ASL_POOL_SLOTS", str(tmp_path / "slots"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def examined(**asked: Any) -> dict[str, tuple[Level, str]]:
        requests = {"pretrain": LocalResources(cpu_slots=1, **asked), "report": LocalResources()}
        found = examination.examine(tmp_path / "pool", requests)
        return {finding.what: (finding.level, finding.detail) for finding in found}

    idle = examined()
    assert idle["GPUs of the pool"][0] is Level.WARNING
    assert idle["slots here"][1].startswith("2 GPUs, 2 free; ")
    asked = examined(gpus=3)
    assert "GPUs of the pool" not in asked
    assert asked["cluster.yaml for pretrain"][0] is Level.FAILURE
    assert asked["cluster.yaml for report"][0] is Level.OK
    assert idle["the pool's slots"][0] is Level.OK
    monkeypatch.setattr(examination, "locks_work", lambda _: False)
    assert examined()["the pool's slots"][0] is Level.FAILURE


def test_a_gpu_that_is_not_there_is_refused_where_that_is_known() -> None:
    for named in (2, -1, "GPU-c", "GPU-"):
        with pytest.raises(ValueError, match=f"visible_gpus names {named}, this machine has {A}"):
            usable_gpus((named,), [A, B], {})
    assert usable_gpus((0, 1), [], {}) == ("0", "1")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("pool: {default: {nodes: 2}}", "pool.default: got nodes 2, expected 1: the pool is this"),
        ("pool: {default: {grace: 0}}", "pool.default: got grace 0, expected 1 or more"),
        ("pool: {default: {visible_gpus: [0, 0]}}", "expected each GPU once"),
        ("pool: {default: {visible_gpu: [0]}}", "did you mean 'visible_gpus'?"),
    ],
)
def test_a_wrong_setting_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(f"scheduler: local\n{text}\n")
    with pytest.raises(UserError, match=r"cluster\.yaml") as caught:
        load_job_request(file, "pretrain")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_settings_of_the_pool_are_read_from_its_section(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(
        "scheduler: local\npool:\n  default: {gpus: 1, cpus: 3, visible_gpus: [1, GPU-x]}\n"
        "  pretrain: {gpus: 2}\n"
    )
    request = load_job_request(file, "pretrain")
    assert (request.scheduler, request.resources.num_workers) == ("local", 2)
    assert request.asked == LocalResources(gpus=2, cpus=3, visible_gpus=(1, "GPU-x"))
