"""What MLflow calls current, and its best model, are what dvc.lock names: no abandoned try."""

import hashlib
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from asl_core.engine.journal import Journal
from pipeline import cli
from pipeline.commands.run import find_presenter
from pipeline.errors import NotFinishedError
from pipeline.jobs.folder import JobFolder
from pipeline.results.dvc_experiment import ASIDE, NAME
from pipeline.tracking.current import follow_locks
from pipeline.tracking.find import find_tracker
from pipeline.tracking.locked import current_results
from pipeline.tracking.mlflow.link import run_link
from pipeline.tracking.mlflow.store import MlflowStore
from pipeline.tracking.sync import sync_journals

# MLflow's tables use what SQLAlchemy 2.1 warns about.
pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")

OLD, NEW, PROBE, TUNED = "a" * 64, "b" * 64, "c" * 64, "d" * 64
FINETUNE = "e" * 64
EXPERIMENTS = ("asl",)


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


class Workspace:
    """A project whose runs are journals, and whose dvc.lock a test writes."""

    def __init__(self, root: Path, tables: Path) -> None:
        self.root = root
        shutil.copy(tables, root / "mlflow.db")
        (root / ".dvc").mkdir()
        (root / ".dvc/config").write_text("[core]\n    no_scm = True\n    analytics = false\n")
        self.params("asl")

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(tracking_uri=f"sqlite:///{self.root / 'mlflow.db'}")

    def params(self, *experiments: str) -> None:
        """Say which experiments there are, all of them evaluated."""
        section = {key: {} for key in experiments}
        content = dict.fromkeys(("experiments", "linprobe", "finetune"), section)
        (self.root / "params.yaml").write_text(yaml.safe_dump({"suite": "demo", **content}))

    def run(
        self, stage: str, fingerprint: str, *, key: str = "asl", encoder: str = OLD,
        end: str | None = "SUCCEEDED", tags: dict[str, str] | None = None, **metrics: float,
    ) -> JobFolder:  # fmt: skip
        """Write the journal of a run."""
        job = JobFolder.of(self.root / ".asl", fingerprint)
        with Journal.open(job.journal) as journal:
            names = {"stage": stage, "key": key, "suite": "demo", "fingerprint": fingerprint}
            journal.tags({**names, "scale": "reduced", **(tags or {})})
            if stage != "pretrain":
                journal.tags({"encoder_fingerprint": encoder})
            if metrics:
                journal.metrics(0, metrics)
            if end is not None:
                journal.end(end, "")
        return job

    def lock(self, *results: dict[str, Any], cached: bool = False) -> None:
        """Let dvc.lock name these results; their metrics files lie there, or in the cache alone."""
        stages = {}
        for each in results:
            stage, key, encoder = each["stage"], each.get("key", "asl"), each["encoder"]
            content = {"fingerprint": each["fingerprint"], "scale": "reduced", **each["metrics"]}
            text = json.dumps(content).encode()
            path, md5 = f"runs/{stage}/{key}.json", hashlib.md5(text).hexdigest()
            blob = self.root / ".dvc/cache/files/md5" / md5[:2] / md5[2:]
            file = blob if cached else self.root / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(text)
            os.utime(file, (1, 1))  # DVC writes dvc.lock after it
            weights = {"path": f"runs/encoder/{key}", "md5": f"{encoder}.dir", "hash": "md5"}
            outs = [{"path": path, "md5": md5, "hash": "md5"}]
            stages[f"{stage}@{key}"] = (
                {"cmd": "x", "outs": [weights, *outs]} if stage == "pretrain"
                else {"cmd": "x", "deps": [weights], "outs": outs}
            )  # fmt: skip
        (self.root / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))

    def sync(self) -> None:
        sync_journals(self.root, MlflowStore(self.root))
        follow_locks(self.root)

    @property
    def runs(self) -> list[Run]:
        experiment = self.client.get_experiment_by_name("asl/demo")
        assert experiment is not None
        return list(self.client.search_runs([experiment.experiment_id]))

    @property
    def current(self) -> list[str]:
        """Encoders of the experiments' runs that are current."""
        return [
            run.data.tags["asl.encoder"] for run in self.runs
            if run.data.tags["asl.stage"] == "experiment"
            and run.data.tags["asl.current"] == "true"
        ]  # fmt: skip

    def row(self, encoder: str = OLD) -> dict[str, float]:
        (found,) = [
            run.data.metrics for run in self.runs if run.data.tags.get("asl.encoder") == encoder
        ]
        return {name: value for name, value in found.items() if not name.startswith("cost/")}

    def mark(self, fingerprint: str) -> str | None:
        link = run_link(self.root, fingerprint)
        assert link is not None
        return self.client.get_run(link.run_id).data.tags.get("asl.current")

    @property
    def best(self) -> str | None:
        try:
            version = self.client.get_model_version_by_alias("asl-demo", "best")
        except MlflowException:
            return None
        return version.tags["asl.fingerprint"]


def pretrain(fingerprint: str, key: str = "asl") -> dict[str, Any]:
    return {"stage": "pretrain", "key": key, "fingerprint": fingerprint, "encoder": fingerprint,
            "metrics": {}}  # fmt: skip


def probe(
    fingerprint: str, accuracy: float, encoder: str = OLD, key: str = "asl"
) -> dict[str, Any]:
    return {"stage": "linprobe", "key": key, "fingerprint": fingerprint, "encoder": encoder,
            "metrics": {"lp_acc1": accuracy}}  # fmt: skip


@pytest.fixture
def workspace(tmp_path: Path, tables: Path) -> Workspace:
    return Workspace(tmp_path, tables)


@pytest.fixture
def tried(workspace: Workspace) -> Workspace:
    """An encoder and its probe, then a try with another encoder that scores more."""
    workspace.run("pretrain", OLD)
    workspace.run("linprobe", PROBE, lp_acc1=40.0)
    workspace.run("pretrain", NEW)
    workspace.run("linprobe", TUNED, encoder=NEW, lp_acc1=60.0)
    workspace.lock(pretrain(NEW), probe(TUNED, 60.0, NEW))
    workspace.sync()
    assert (workspace.current, workspace.best) == ([NEW], NEW)
    return workspace


@pytest.mark.parametrize("cached", [False, True], ids=["git checkout", "dvc checkout"])
def test_a_try_that_is_abandoned_is_neither_current_nor_best(
    tried: Workspace, cached: bool
) -> None:
    # dvc checkout leaves metrics files alone: those of the try lie there still
    for _ in range(2):  # there and back again
        tried.lock(pretrain(OLD), probe(PROBE, 40.0), cached=cached)
        tried.sync()
        assert (tried.current, tried.best) == ([OLD], OLD)
        assert (tried.mark(PROBE), tried.mark(TUNED)) == ("true", "false")
        tried.lock(pretrain(NEW), probe(TUNED, 60.0, NEW), cached=cached)
        tried.sync()
        assert (tried.current, tried.best) == ([NEW], NEW)
        assert (tried.mark(PROBE), tried.mark(TUNED)) == ("false", "true")
    assert len(tried.runs) == 6


def test_a_row_has_the_number_that_dvc_lock_names_and_none_that_it_does_not(
    workspace: Workspace,
) -> None:
    workspace.run("pretrain", OLD)
    workspace.run("linprobe", PROBE, lp_acc1=40.0)
    workspace.run("linprobe", TUNED, lp_acc1=60.0)
    workspace.run("finetune", FINETUNE, ft_acc1=70.0)
    workspace.lock(pretrain(OLD), probe(PROBE, 40.0))
    workspace.sync()
    row = workspace.row()
    assert row["lp_acc1"] == 40.0
    assert math.isnan(row["ft_acc1"])
    points = len(workspace.client.get_metric_history(workspace.runs[-1].info.run_id, "lp_acc1"))
    workspace.sync()
    assert len(workspace.client.get_metric_history(workspace.runs[-1].info.run_id, "lp_acc1")) == (
        points
    )
    finetuned = {"stage": "finetune", "fingerprint": FINETUNE, "encoder": OLD,
                 "metrics": {"ft_acc1": 70.0}}  # fmt: skip
    workspace.lock(pretrain(OLD), probe(TUNED, 60.0), finetuned)
    workspace.sync()
    assert workspace.row() == {"lp_acc1": 60.0, "ft_acc1": 70.0}


def test_a_failed_try_that_is_abandoned_does_not_let_its_experiment_fail(
    workspace: Workspace,
) -> None:
    workspace.run("pretrain", OLD)
    workspace.run("linprobe", PROBE, lp_acc1=40.0)
    workspace.run("linprobe", TUNED, end="FAILED")
    workspace.lock(pretrain(OLD), probe(PROBE, 40.0))
    workspace.sync()
    (parent,) = [run for run in workspace.runs if run.info.run_name == "asl"]
    assert parent.info.status == "FINISHED"


def test_a_result_of_an_earlier_encoder_is_not_in_the_row_of_the_present_one(
    workspace: Workspace,
) -> None:
    workspace.run("pretrain", OLD)
    workspace.run("linprobe", PROBE, lp_acc1=40.0)
    workspace.run("pretrain", NEW)
    workspace.lock(pretrain(NEW), probe(PROBE, 40.0, OLD))  # the probe has not been made anew
    workspace.sync()
    assert workspace.current == [NEW]
    assert "lp_acc1" not in workspace.row(NEW)
    assert workspace.mark(PROBE) == "true"
    assert workspace.best is None


def test_an_experiment_that_params_yaml_lost_has_nothing_current(tried: Workspace) -> None:
    tried.params("mae")
    tried.sync()
    assert (tried.current, tried.best) == ([], None)
    tried.params("asl")
    tried.sync()
    assert (tried.current, tried.best) == ([NEW], NEW)


def test_without_dvc_lock_nothing_is_current_but_what_goes_on(tried: Workspace) -> None:
    (tried.root / "dvc.lock").unlink()
    shutil.rmtree(tried.root / "runs")  # metrics files are in git with it
    tried.sync()
    assert (tried.current, tried.best) == ([], None)
    tried.run("pretrain", "f" * 64, end=None)
    tried.sync()
    assert tried.current == ["f" * 64]


def test_what_goes_on_is_current_before_dvc_lock_has_it_and_not_after_it_failed(
    tried: Workspace,
) -> None:
    job = tried.run("pretrain", "f" * 64, end=None)
    tried.sync()
    assert tried.current == ["f" * 64]
    with max(job.journal.glob("*.jsonl")).open("a") as file:
        line = {"v": 1, "kind": "end", "t": 9, "status": "FAILED", "message": "no"}
        file.write(json.dumps(line) + "\n")
    tried.sync()
    assert (tried.current, tried.best) == ([NEW], NEW)


def test_what_a_job_has_made_is_current_until_it_is_taken_over(workspace: Workspace) -> None:
    job = workspace.run("pretrain", OLD)
    job.job.write_text("{}")
    workspace.sync()
    assert workspace.current == [OLD]
    workspace.run("pretrain", NEW)
    workspace.lock(pretrain(NEW))
    workspace.sync()
    assert workspace.current == [NEW]


def test_a_result_that_was_vouched_for_is_that_of_the_run_that_made_it(tried: Workspace) -> None:
    # filed under another key: the entry's own is that of nobody's run
    (found,) = current_results(tried.root)
    assert found.experiments["asl"]["pretrain"].fingerprint == NEW
    (tried.root / "runs/pretrain/asl.json").write_text("{}")
    (found,) = current_results(tried.root)
    key = found.experiments["asl"]["pretrain"].fingerprint
    assert key not in (OLD, NEW)
    assert len(key) == 64


def test_a_run_that_was_deleted_in_mlflow_and_one_that_was_restored_are_current_once(
    tried: Workspace,
) -> None:
    (gone,) = [r for r in tried.runs if r.data.tags.get("asl.encoder") == NEW]
    tried.client.delete_run(gone.info.run_id)
    tried.sync()
    assert tried.current == [NEW]
    tried.client.restore_run(gone.info.run_id)
    tried.sync()
    assert tried.current == [NEW]


def test_a_store_that_does_not_answer_follows_the_next_time(
    tried: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow_locks(tried.root, trusting=True)
    tried.lock(pretrain(OLD), probe(PROBE, 40.0))

    def fail(*_: Any, **__: Any) -> None:
        raise MlflowException("the server is gone")

    with monkeypatch.context() as off:
        off.setattr(MlflowClient, "set_tag", fail)
        with pytest.raises(NotFinishedError, match=r"server is gone.*run asl-pipe sync again"):
            follow_locks(tried.root, trusting=True)
    follow_locks(tried.root, trusting=True)
    assert (tried.current, tried.best) == ([OLD], OLD)


def test_a_store_that_is_up_to_date_is_not_asked(
    tried: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("asked")

    monkeypatch.setattr(MlflowClient, "search_runs", fail)
    follow_locks(tried.root, trusting=True)
    tried.lock(pretrain(OLD))
    with pytest.raises(AssertionError, match="asked"):
        follow_locks(tried.root, trusting=True)


def test_a_suite_that_cannot_be_read_holds_up_no_other(
    tried: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    other = tried.root / "suites/other"
    other.mkdir(parents=True)
    (other / "params.yaml").write_text("<<<<<<< HEAD\nsuite: [\n")
    tried.lock(pretrain(OLD), probe(PROBE, 40.0))
    tried.sync()
    assert tried.current == [OLD]
    assert "suites/other/params.yaml" in caplog.text


def test_what_a_clone_does_not_know_of_a_shared_store_stays_current(
    tried: Workspace, tables: Path, tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    clone = Workspace(tmp_path_factory.mktemp("clone"), tables)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tried.root / 'mlflow.db'}")
    clone.params("mae")
    clone.run("pretrain", "f" * 64, key="mae")
    clone.lock(pretrain("f" * 64, "mae"))
    clone.sync()
    assert sorted(tried.current) == [NEW, "f" * 64]
    assert tried.best == NEW


def test_a_result_that_was_pulled_is_sent_and_current(
    tried: Workspace, tables: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    clone = Workspace(tmp_path_factory.mktemp("clone"), tables)
    for stage, fingerprint in (("pretrain", NEW), ("linprobe", TUNED)):
        details = clone.root / "runs" / stage / "asl"
        shutil.copytree(tried.root / ".asl/jobs" / fingerprint / "journal", details / "journal")
        for file in (details / "journal").iterdir():
            file.chmod(0o444)  # as DVC's cache has it
    clone.lock(pretrain(NEW), probe(TUNED, 60.0, NEW))
    clone.sync()
    assert (clone.current, clone.best) == ([NEW], NEW)
    assert clone.row(NEW)["lp_acc1"] == 60.0
    count = len(clone.runs)
    clone.sync()
    assert len(clone.runs) == count == 3


def of_experiment(name: str) -> dict[str, str]:
    return {NAME: name, ASIDE: "true"}


def test_an_experiment_of_dvc_in_its_own_folder_takes_nothing_over_until_it_is_applied(
    tried: Workspace,
) -> None:
    tried.run("linprobe", "1" * 64, encoder=NEW, tags=of_experiment("try"), lp_acc1=99.0)
    tried.run("pretrain", "2" * 64, tags=of_experiment("other"))
    tried.run("linprobe", "3" * 64, encoder="2" * 64, tags=of_experiment("other"), lp_acc1=98.0)
    for job in ("1", "2", "3"):
        sync_journals(tried.root, MlflowStore(tried.root), lambda j, k=job: j.folder.name[0] == k)
        assert (tried.current, tried.best) == ([NEW], NEW)  # even before dvc.lock is asked
        assert tried.row(NEW)["lp_acc1"] == 60.0
    assert tried.row("2" * 64)["lp_acc1"] == 98.0
    tried.sync()
    assert (tried.current, tried.best) == ([NEW], NEW)
    tried.lock(pretrain("2" * 64), probe("3" * 64, 98.0, "2" * 64))  # dvc exp apply
    tried.sync()
    assert (tried.current, tried.best) == (["2" * 64], "2" * 64)


def test_what_has_just_ended_is_current_before_dvc_has_written_its_lock(tried: Workspace) -> None:
    tried.run("linprobe", "1" * 64, encoder=NEW, lp_acc1=50.0)
    file = tried.root / "runs/linprobe/asl.json"
    file.write_text(json.dumps({"fingerprint": "1" * 64, "lp_acc1": 50.0}))
    os.utime(file, ((tried.root / "dvc.lock").stat().st_mtime + 1,) * 2)
    tried.sync()
    assert tried.row(NEW)["lp_acc1"] == 50.0
    assert tried.mark("1" * 64) is None
    os.utime(file, (1, 1))  # dvc.lock went back, and dvc checkout leaves metrics files alone
    tried.lock(pretrain(NEW), probe(TUNED, 60.0, NEW), cached=True)
    tried.sync()
    assert tried.row(NEW)["lp_acc1"] == 60.0
    assert tried.mark("1" * 64) == "false"


@pytest.mark.parametrize("command", ["sync", "sync of one run", "ui", "report"])
def test_each_way_into_the_store_follows_dvc_lock(
    tried: Workspace, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tried.root)
    monkeypatch.setattr("pipeline.tracking.mlflow.kind.serve", lambda *_: None)
    tried.lock(pretrain(OLD), probe(PROBE, 40.0))
    if command == "report":
        assert find_presenter(find_tracker(tried.root), tried.root, "report") is not None
    else:
        ways = {"sync": ["sync"], "sync of one run": ["sync", OLD], "ui": ["ui"]}
        assert cli.run_command(ways[command]) == 0
    assert (tried.current, tried.best) == ([OLD], OLD)
