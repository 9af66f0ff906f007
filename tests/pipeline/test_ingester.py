"""A stage does not wait for MLflow: a process of its own brings the run, once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline.commands.run import find_presenter
from pipeline.errors import TrackingError
from pipeline.tracking.background import BackgroundTracker
from pipeline.tracking.find import find_tracker
from pipeline.tracking.foreground import ForegroundTracker
from pipeline.tracking.mlflow.link import all_links
from pipeline.tracking.mlflow.lock import tracking_lock

# MLflow's tables use what SQLAlchemy 2.1 warns about.
pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")

PARAMS = """
suite: tiny
title: Tiny
scale: reduced
tables: []
datasets: {icons: {source: icons, train: 8, test: 4}}
experiments: {asl: {method: asl, dataset: icons, model: vit-demo, epochs: 2, warmup_epochs: 1}}
linprobe: {}
finetune: {}
detect: {}
segment: {}
analyze: {}
"""

WAITING = """#!/bin/sh
echo "$@" > said
read -r _ < gate
"""


@pytest.fixture
def waiting_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a stand-in for Python say what it was called with and wait until `gate` is written."""
    monkeypatch.chdir(tmp_path)
    os.mkfifo("gate")
    interpreter = tmp_path / "python"
    interpreter.write_text(WAITING)
    interpreter.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(interpreter))


@pytest.mark.usefixtures("waiting_python")
def test_the_process_gets_the_fingerprint_and_is_not_waited_for(tmp_path: Path) -> None:
    process = BackgroundTracker().ingest(tmp_path / ".asl/jobs/f00d/journal", tmp_path / "out")
    assert process.poll() is None  # it cannot end before the gate opens
    assert os.getsid(process.pid) == process.pid
    (tmp_path / "gate").write_text("go\n")
    assert process.wait() == 0
    assert (tmp_path / "said").read_text() == f"-P -m pipeline sync f00d --outputs {tmp_path}/out\n"


@pytest.mark.usefixtures("waiting_python")
def test_a_process_that_follows_a_run_is_left_to_end_with_it(tmp_path: Path) -> None:
    tracker, journal = BackgroundTracker(), tmp_path / ".asl/jobs/f00d/journal"
    tracker.follow(journal, tmp_path / "out")
    follower = tracker.ingest(journal, tmp_path / "out")
    (tmp_path / "gate").write_text("go\n")
    assert follower.wait() == 0
    said = f"-P -m pipeline sync f00d --follow --outputs {tmp_path}/out\n"
    assert (tmp_path / "said").read_text() == said
    (tmp_path / "gate").unlink()
    os.mkfifo("gate")
    again = tracker.ingest(journal, tmp_path / "out")  # should it have died
    (tmp_path / "gate").write_text("go\n")
    assert again.wait() == 0
    assert (tmp_path / "said").read_text().endswith(f"--outputs {tmp_path}/out\n")


def test_a_system_without_room_for_a_process_is_a_tracking_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nothing"))
    with pytest.raises(TrackingError, match="no process could be started"):
        BackgroundTracker().ingest(tmp_path / "journal", tmp_path / "out")


def test_every_stage_but_the_report_leaves_mlflow_to_another_process(tmp_path: Path) -> None:
    tracker = find_tracker(tmp_path)
    assert isinstance(find_presenter(tracker, tmp_path, "pretrain"), BackgroundTracker)
    assert isinstance(find_presenter(tracker, tmp_path, "report"), ForegroundTracker)


@pytest.mark.slow
def test_a_stage_ends_before_its_run_is_in_the_store_and_then_it_is_there_once(
    copied_project: Path,
) -> None:
    (copied_project / "params.yaml").write_text(PARAMS)
    command = ["asl-pipe", "run", "prepare", "icons"]
    with tracking_lock(copied_project):  # as long as this lasts nothing can come into the store
        stage = subprocess.Popen(command, cwd=copied_project, stderr=subprocess.PIPE, text=True)
        assert stage.wait() == 0
        assert all_links(copied_project) == []
    _, said = stage.communicate()  # standard error ends with the last process that has it
    assert "MLflow" not in said
    (link,) = all_links(copied_project)
    assert link.complete
    client = MlflowClient(tracking_uri=f"sqlite:///{copied_project / 'mlflow.db'}")
    (found,) = client.search_runs([link.experiment_id])
    assert (found.info.run_name, found.info.status) == ("prepare/icons", "FINISHED")
    stored = {item.path for item in client.list_artifacts(found.info.run_id)}
    assert stored >= {"config.json", "manifest.json"}
    recipe = json.loads((copied_project / "runs/prepare/icons/config.json").read_text())
    assert recipe["source"] == "icons"
