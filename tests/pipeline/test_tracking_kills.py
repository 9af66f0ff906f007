"""Trainer and ingester killed at any moment: every point is in the store, and once."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline.jobs.folder import JobFolder
from pipeline.tracking.mlflow.link import run_link
from pipeline.tracking.mlflow.store import MlflowStore
from pipeline.tracking.sync import sync_journals

# MLflow's tables use what SQLAlchemy 2.1 warns about.
pytestmark = [
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),
    pytest.mark.slow,
]

KILLS = 20 if os.environ.get("ASL_LONG_TESTS") else 5
FINGERPRINT = "0123abcd" * 4
STEPS_A_KILL = 150

TRAINER = """
import json, os, sys, time
from pathlib import Path
from asl_core.engine.journal import Journal

folder, fingerprint, steps = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
checkpoint, step = folder / "checkpoint.json", 0
with Journal.open(folder / "journal") as journal:
    names = {"stage": "pretrain", "key": "asl", "suite": "demo", "fingerprint": fingerprint}
    journal.tags({**names, "scale": "reduced"})
    if checkpoint.exists():
        step = json.loads(checkpoint.read_text())
    journal.resume(step, steps)
    while step < steps:
        step += 1
        journal.metrics(step, {"pretrain/loss": step + 0.5, "pretrain/lr": -float(step)})
        time.sleep(0.01)
        if step % 20 == 0:
            journal.sync()
            (folder / "new.json").write_text(json.dumps(step))
            os.replace(folder / "new.json", checkpoint)
    journal.end("SUCCEEDED")
"""

INGESTER = """
import sys
from pathlib import Path
from pipeline.tracking import sync
from pipeline.tracking.mlflow.store import MlflowStore

sync.FOLLOW_S, sync.POLL_S, sync.PATIENCE = 0.3, 0.1, 0
while True:
    sync.follow_run(Path(sys.argv[1]), sys.argv[2], MlflowStore(Path(sys.argv[1])))
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}").search_experiments()
    (tmp_path / ".dvc").mkdir()
    return tmp_path


@pytest.mark.timeout(900)
def test_no_point_is_lost_or_doubled_whoever_is_killed_and_when(root: Path) -> None:
    job, moments = JobFolder.of(root / ".asl", FINGERPRINT), random.Random(0)
    job.folder.mkdir(parents=True)
    steps = KILLS * STEPS_A_KILL
    commands = {
        "trainer": [sys.executable, "-c", TRAINER, str(job.folder), FINGERPRINT, str(steps)],
        "ingester": [sys.executable, "-c", INGESTER, str(root), FINGERPRINT],
    }
    running = {"trainer": start(commands["trainer"])}
    while not list(job.journal.glob("*")):
        time.sleep(0.01)
    running["ingester"] = start(commands["ingester"])
    killed = {"trainer": 0, "ingester": 0}
    for _ in range(KILLS):
        time.sleep(moments.uniform(0.3, 3.0))
        victim = moments.choice(sorted(running))
        killed[victim] += running[victim].poll() is None
        running[victim].kill()
        running[victim].wait()
        running[victim] = start(commands[victim])
    assert running["trainer"].wait() == 0
    running["ingester"].send_signal(signal.SIGKILL)
    running["ingester"].wait()
    assert killed["trainer"]
    assert killed["ingester"]
    sync_journals(root, MlflowStore(root))
    link = run_link(root, FINGERPRINT)
    assert link is not None
    assert link.status == "SUCCEEDED"
    client = MlflowClient(tracking_uri=f"sqlite:///{root / 'mlflow.db'}")
    runs = client.search_runs([link.experiment_id], "tags.`asl.stage` = 'pretrain'")
    assert [run.info.run_id for run in runs] == [link.run_id]
    for key, value in (("loss", 0.5), ("lr", 0.0)):
        found = client.get_metric_history(link.run_id, f"pretrain/{key}")
        expected = [(s, s + value if value else -float(s)) for s in range(1, steps + 1)]
        assert sorted((point.step, point.value) for point in found) == expected
    copy_is_the_same(root, job)


def copy_is_the_same(root: Path, job: JobFolder) -> None:
    """A journal's folder may be brought into a store from another machine: the same points."""
    other = root / "elsewhere"
    (other / ".dvc").mkdir(parents=True)
    target = JobFolder.of(other / ".asl", FINGERPRINT)
    shutil.copytree(job.journal, target.journal)
    sync_journals(other, MlflowStore(other))
    stores = []
    for folder in (root, other):
        link = run_link(folder, FINGERPRINT)
        assert link is not None
        client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
        found = client.get_metric_history(link.run_id, "pretrain/loss")
        stores.append(sorted((point.step, point.value, point.timestamp) for point in found))
    assert stores[0] == stores[1]
    assert json.loads((target.folder / "mlflow.json").read_text())["complete"]


def start(command: list[str]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
