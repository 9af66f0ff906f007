"""The local pool runs the DAG: submitted from a shell that is killed, adopted by `dvc repro`."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from stub_dag import SEVEN_STEPS, adopt, journals, wait

from pipeline.jobs.folder import JobFolder
from pipeline.jobs.job import read_attempts
from pipeline.schedulers.find import find_scheduler
from pipeline.schedulers.local.scheduler import LocalPool


@pytest.fixture
def pool(stub_project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalPool]:
    """The project's, chosen in its cluster.yaml; this process stands in the project."""
    monkeypatch.chdir(stub_project)
    monkeypatch.setenv("ASL_POOL_SLOTS", str(stub_project.with_name("slots")))
    ask()
    found = find_scheduler(stub_project / ".asl")
    assert isinstance(found, LocalPool)
    yield found
    found.cancel([job.job_id for job in found.queue()])
    wait(found)


def ask(stub: dict[str, Any] | None = None, **settings: Any) -> None:
    """Say in cluster.yaml what jobs ask for, and what the stub stages in them do."""
    orders = json.dumps({"steps": 7, **(stub or {})})
    default = {"cpu_slots": 2, "grace": 5, "env": {"STUB": orders}}
    text = yaml.safe_dump({"scheduler": "local", "pool": {"default": {**default, **settings}}})
    Path("cluster.yaml").write_text(text)


def test_a_dag_outlives_its_shell_a_warning_and_a_kill(
    pool: LocalPool, say: Callable[..., str], call: Any
) -> None:
    ask({"step_s": 0.3, "end_s": 2.0})  # it still runs when it is killed after its sixth step
    command = f"{sys.executable} -m pipeline submit --all; touch submitted; sleep 600"
    here = os.environ | {"PYTHONPATH": str(Path.cwd())}
    shell = subprocess.Popen(["bash", "-c", command], start_new_session=True, env=here)
    wait(pool, Path("submitted").exists)
    os.killpg(shell.pid, signal.SIGKILL)
    shell.wait()
    assert [job.job_id for job in pool.queue()] == ["1", "2", "3"]
    wait(pool, lambda: '"step": 2,' in journals())
    pool.send_signal("2", "USR2")  # as before a time limit: it asks to be requeued
    wait(pool, lambda: '"step": 6,' in journals())
    job = pool.pool.read("2")
    assert job is not None
    for pid, _ in job.processes:
        os.kill(pid, signal.SIGKILL)
    wait(pool)
    assert [(job.said, job.restarts) for job in pool.queue()] == [
        ("COMPLETED", 0), ("COMPLETED", 2), ("COMPLETED", 0),
    ]  # fmt: skip
    assert say("status").count("SUCCEEDED") == 3
    assert adopt(call, "linprobe@asl") == SEVEN_STEPS
    resumed = [line for line in journals().splitlines() if '"resume"' in line]
    assert max(json.loads(line)["step"] for line in resumed) >= 5
    records = [JobFolder(path.parent) for path in Path(".asl/jobs").glob("*/job.json")]
    terms = [attempt.terms for paths in records for attempt in read_attempts(paths)]
    assert [each.scheduler for each in terms] == ["local"] * 3  # each was made once


def test_commands_say_what_the_pool_does(pool: LocalPool, say: Callable[..., str]) -> None:
    assert "cpu_slots 2" in say("submit", "--all", "--dry-run")
    ask({"step_s": 0.5})
    say("submit", "--stage", "pretrain")
    wait(pool, lambda: '"step": 1,' in journals())
    said = say("status")
    assert "RUNNING" in said
    say("cancel", "pretrain@asl")
    wait(pool)
    assert {job.said for job in pool.queue()} == {"COMPLETED", "CANCELLED"}
    found = say("doctor")
    for line in (
        "ok       the pool's slots:", "ok       slots here:", "ok       the pool: 0 jobs run",
        "ok       signals: SIGUSR2", "ok       requeue: allowed",
    ):  # fmt: skip
        assert line in found
    ask(cpus=3)
    refused = say("submit", "--stage", "pretrain", code=1)
    assert "asks for 3 CPU slots, the pool has 2: change pool: in cluster.yaml" in refused
