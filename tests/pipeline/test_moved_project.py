"""A project that was moved goes on where it is, and a copy leaves its original alone."""

import hashlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from asl_core.engine.journal import Journal
from pipeline import cli
from pipeline.jobs.folder import JobFolder
from pipeline.jobs.journal import effective_points
from pipeline.tracking.current import follow_locks
from pipeline.tracking.mlflow.address import StoreAddress
from pipeline.tracking.mlflow.link import all_links
from pipeline.tracking.mlflow.store import MlflowStore

# MLflow's tables use what SQLAlchemy 2.1 warns about.
pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")

Copy = Callable[[Path, Path], Path]
Repro = Callable[..., None]


@pytest.fixture(scope="module")
def made(
    stub_template: Path, copy_project: Copy, repro: Repro, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A project with results, in a folder whose name an address has to encode."""
    root = copy_project(stub_template, tmp_path_factory.mktemp("made") / "a projéct")
    repro(root, "linprobe@asl")
    return root


def contents(root: Path) -> dict[str, str]:
    """Return the digest of every file, and where links lead."""
    return {
        str(path.relative_to(root)): str(path.readlink()) if path.is_symlink()
        else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*")) if path.is_symlink() or path.is_file()
    }  # fmt: skip


def mentions(root: Path, folder: Path) -> list[tuple[str, str]]:
    """Return the columns of the project's store that name a folder, as a path or an address."""
    database, found = sqlite3.connect(root / "mlflow.db"), []
    for (table,) in database.execute("select name from sqlite_master where type = 'table'"):
        for _, name, *_ in database.execute(f'pragma table_info("{table}")').fetchall():
            for text in (str(folder), folder.as_uri()):
                query = f'select count(*) from "{table}" where instr("{name}", ?) > 0'
                if database.execute(query, (f"{text}/",)).fetchone()[0]:
                    found.append((table, name))
    return found


def test_a_copy_that_runs_changes_nothing_in_its_original(
    made: Path, repro: Repro, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-a", made, copy], check=True)
    before = contents(made)
    earlier = {link.run_id for link in all_links(copy)}
    params = copy / "params.yaml"
    params.write_text(params.read_text().replace("epochs: 12", "epochs: 13"))
    repro(copy, "linprobe@asl")
    assert contents(made) == before
    (new,) = {link.run_id for link in all_links(copy)} - earlier
    client = MlflowClient(tracking_uri=f"sqlite:///{copy / 'mlflow.db'}")
    for run_id in (new, *earlier):
        names = {each.path for each in client.list_artifacts(run_id)}
        assert "config.json" in names
        place = client.get_run(run_id).info.artifact_uri
        assert str(place).startswith((copy / "mlartifacts").as_uri())
    assert mentions(copy, made) == []
    assert set(mentions(copy, copy)) == set(mentions(made, made))


def test_a_moved_project_goes_on(made: Path, tmp_path: Path) -> None:
    former, root = tmp_path / "former", tmp_path / "now"
    subprocess.run(["cp", "-a", made, former], check=True)
    params = former / "params.yaml"
    params.write_text(params.read_text().replace("epochs: 2", "epochs: 3"))
    orders = {"STUB": json.dumps({"steps": 40, "step_s": 0.1}), "PYTHONPATH": str(former)}
    run = subprocess.Popen(
        ["asl-pipe", "run", "pretrain", "asl"], cwd=former, env=os.environ | orders,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    while not list((former / ".asl/jobs").glob("*/ckpt/*.json")):
        time.sleep(0.05)
    run.send_signal(signal.SIGTERM)
    _, said = run.communicate()  # standard error ends with the process that fills the store
    assert run.returncode == 75, said
    assert any(link.status == "INTERRUPTED" for link in all_links(former))
    former.rename(root)
    here = {"STUB": json.dumps({"steps": 40}), "PYTHONPATH": str(root)}
    done = subprocess.run(
        ["dvc", "repro", "-q", "linprobe@asl"], cwd=root, env=os.environ | here,
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    assert not former.exists()
    (job,) = [p for p in (root / ".asl/jobs").iterdir() if len(list(p.glob("journal/a*"))) == 2]
    resumed = (job / "journal/attempt-001.jsonl").read_text()
    assert '"step": 0' not in resumed.split('"kind": "metrics"')[0]  # not from the beginning
    assert len(effective_points(job / "journal")["pretrain/loss"]) == 40
    status = subprocess.run(
        ["dvc", "status", "linprobe@asl", "pretrain@asl"], cwd=root, env=os.environ | here,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "up to date" in status.stdout
    follow_locks(root)
    assert mentions(root, former) == []


def test_the_pages_show_what_a_moved_project_has(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "moved"
    subprocess.run(["cp", "-a", made, root], check=True)
    found: list[object] = []

    def serve(where: Path, *_: object) -> None:
        digest = StoreAddress.of(where).digest
        found.append((mentions(where, made), {link.store for link in all_links(where)} == {digest}))

    monkeypatch.setattr("pipeline.tracking.mlflow.kind.serve", serve)
    monkeypatch.chdir(root)
    assert cli.run_command(["ui"]) == 0
    assert found == [([], True)]


@pytest.mark.parametrize("gone", [True, False], ids=["moved", "copied"])
def test_a_database_outside_is_mended_only_if_the_project_is_gone_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: bool
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'lab.db'}")
    former, root = tmp_path / "former", tmp_path / "now"
    (former / ".dvc").mkdir(parents=True)
    job = JobFolder.of(former / ".asl", "a" * 64)
    with Journal.open(job.journal) as journal:
        names = {"stage": "pretrain", "key": "asl", "suite": "tiny", "fingerprint": "a" * 64}
        journal.tags(names)
        journal.end("SUCCEEDED")
    MlflowStore(former).ingest(job.journal, job.details)
    (former.rename if gone else lambda to: shutil.copytree(former, to))(root)
    MlflowStore(root).ingest(JobFolder.of(root / ".asl", "a" * 64).journal, root / "nothing")
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'lab.db'}")
    experiment = client.get_experiment_by_name("asl/tiny")
    assert experiment is not None
    kept = root if gone else former
    assert experiment.artifact_location == (kept / "mlartifacts/tiny").as_uri()
