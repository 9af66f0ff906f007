"""A PostgreSQL as MLflow's store: many processes of several projects at once, wrong passwords."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from debian import install
from mlflow import MlflowClient
from postgres import PACKAGE, Postgres, find_program

from asl_core.engine.journal import Journal
from pipeline.errors import TrackingError
from pipeline.jobs.folder import JobFolder
from pipeline.tracking.mlflow.store import MlflowStore

# MLflow's tables use what SQLAlchemy 2.1 warns about.
pytestmark = [
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),
    pytest.mark.slow,
]

PROCESSES, PROJECTS, STEPS = (32 if os.environ.get("ASL_LONG_TESTS") else 6), 2, 20

INGEST = """
import sys
from pathlib import Path
from pipeline.tracking.mlflow.store import MlflowStore

job = Path(sys.argv[1])
MlflowStore(job.parents[2]).ingest(job / "journal", job / "out")
"""


@pytest.fixture
def uri(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty database, set as MLflow's store; with CI=true PostgreSQL is installed if need be."""
    if find_program("initdb") is None:
        if os.environ.get("CI") != "true":
            pytest.skip(f"no initdb; apt-get install --no-install-recommends {PACKAGE}")
        install(PACKAGE)
    # not under pytest's own folder, which is closed to the user that PostgreSQL runs as
    folder = Path(tempfile.mkdtemp(prefix="asl-postgres-"))
    folder.chmod(0o755)
    server = Postgres(folder)
    try:
        address = server.start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        yield address
        server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_run(root: Path, stage: str, key: str) -> JobFolder:
    """Write the journal of a finished run."""
    fingerprint = f"{root.name}{stage}{key}"
    job = JobFolder.of(root / ".asl", fingerprint)
    with Journal.open(job.journal) as journal:
        names = {"stage": stage, "key": key, "suite": "demo", "fingerprint": fingerprint}
        journal.tags({**names, "scale": "reduced"})
        for step in range(STEPS):
            journal.metrics(step, {"pretrain/loss": float(step)})
        journal.end("SUCCEEDED")
    return job


@pytest.mark.timeout(900)
def test_processes_of_two_projects_that_find_no_tables_lose_nothing(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = []
    for number in range(PROCESSES):
        root = tmp_path / f"project{number % PROJECTS}"
        (root / ".dvc").mkdir(parents=True, exist_ok=True)
        jobs.append(write_run(root, "pretrain", f"e{number}"))
    command = [sys.executable, "-c", INGEST]
    started = [
        subprocess.Popen([*command, str(job.folder)], stderr=subprocess.PIPE, text=True)
        for job in jobs
    ]
    said = [process.communicate()[1] for process in started]
    assert [process.returncode for process in started] == [0] * PROCESSES, said
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("asl/demo")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert Counter(run.data.tags["asl.stage"] for run in runs) == {
        "pretrain": PROCESSES, "experiment": PROCESSES,
    }  # fmt: skip
    job = jobs[0]
    MlflowStore(job.folder.parents[2]).ingest(job.journal, job.out)
    points = [
        point.step
        for run in runs
        if run.data.tags["asl.stage"] == "pretrain"
        for point in client.get_metric_history(run.info.run_id, "pretrain/loss")
    ]
    assert sorted(points) == sorted(list(range(STEPS)) * PROCESSES)
    password = re.search(r":(\w+)@", uri)
    assert password is not None
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or password[1].encode() not in path.read_bytes(), path
    (job.folder / "mlflow.json").unlink()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.replace(password[1], "not-the-password"))
    with pytest.raises(TrackingError) as refused:
        MlflowStore(job.folder.parents[2]).ingest(job.journal, job.out)
    assert "password authentication failed" in str(refused.value)
    assert "not-the-password" not in str(refused.value)
