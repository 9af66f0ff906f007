"""A scheduler of which `pipeline` knows nothing runs the DAG: what a lab has to write is enough."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from local_processes import LocalProcesses
from local_processes import __file__ as service
from stub_dag import SEVEN_STEPS, adopt, journals, wait

from pipeline.config.job_resources import JobResources
from pipeline.doctor import nodes
from pipeline.jobs.folder import JobFolder
from pipeline.jobs.job import read_attempts
from pipeline.schedulers.find import find_scheduler
from pipeline.schedulers.port import Level

NAME = "local_processes:local_processes"


@pytest.fixture
def scheduler(stub_project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalProcesses]:
    """The project's own, chosen in its cluster.yaml; this process stands in the project."""
    monkeypatch.chdir(stub_project)
    monkeypatch.setenv("PYTHONPATH", str(Path(service).parent), prepend=os.pathsep)
    ask()
    found = find_scheduler(stub_project / ".asl")
    assert isinstance(found, LocalProcesses)
    yield found
    found.cancel([job.job_id for job in found.queue()])


def ask(**stub: Any) -> None:
    """Say in cluster.yaml who runs jobs, and what the stub stages in them do."""
    settings = {"niceness": 1, "env": {"STUB": json.dumps({"steps": 7, **stub})}}
    text = yaml.safe_dump({"scheduler": NAME, "local_processes": {"default": settings}})
    Path("cluster.yaml").write_text(text)


def test_a_dag_goes_to_another_scheduler_and_dvc_adopts_it(
    scheduler: LocalProcesses, say: Callable[..., str], call: Any
) -> None:
    assert "niceness 1" in say("submit", "--all", "--dry-run")
    say("submit", "--all")
    assert [job.job_id for job in scheduler.queue()] == ["1", "2", "3"]
    wait(scheduler)
    assert {job.said for job in scheduler.queue()} == {"exit code 0"}
    assert say("status").count("SUCCEEDED") == 3
    assert adopt(call, "linprobe@asl") == SEVEN_STEPS
    records = [JobFolder(path.parent) for path in Path(".asl/jobs").glob("*/job.json")]
    terms = [attempt.terms for paths in records for attempt in read_attempts(paths)]
    assert [each.scheduler for each in terms] == [NAME] * 3
    assert [each.asked["niceness"] for each in terms] == [1] * 3


def test_a_job_that_is_warned_goes_on_as_another_one(
    scheduler: LocalProcesses, say: Callable[..., str], call: Any
) -> None:
    ask(step_s=0.3)
    say("submit", "--stage", "pretrain")
    wait(scheduler, lambda: '"step": 2,' in journals())
    scheduler.send_signal("2", "USR2")
    wait(scheduler, lambda: len(scheduler.queue()) == 3)
    wait(scheduler)
    assert adopt(call, "pretrain@asl") == SEVEN_STEPS


def test_what_waits_for_a_failure_is_blocked_and_cancelled(
    scheduler: LocalProcesses, say: Callable[..., str]
) -> None:
    ask(fail=0)
    say("submit", "--stage", "pretrain")
    wait(scheduler)
    said = say("status")
    assert ("FAILED" in said, "BLOCKED" in said) == (True, True)
    say("cancel", "--blocked")
    wait(scheduler, lambda: all(job.has_ended for job in scheduler.queue()))
    assert "cancelled while it waited" in say("status")


def test_its_nodes_are_examined(
    scheduler: LocalProcesses, monkeypatch: pytest.MonkeyPatch, say: Callable[..., str]
) -> None:
    monkeypatch.setattr(nodes, "READS_S", 0.3)
    found = nodes.examine_nodes(Path(".asl").absolute(), scheduler, JobResources(), wait_s=120)
    findings = {finding.what: finding for finding in found}
    assert findings["a job"].level is Level.OK
    assert findings["signals"].level is Level.OK
    assert findings["requeue"].detail == "job 1: a process that has ended does not rise again"
    assert findings["requeue"].remedy == "set requeue: resubmit in cluster.yaml"
