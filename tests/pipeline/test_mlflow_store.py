"""Journals in MLflow: every point once, one run a stage below one run an experiment."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from PIL import Image

from asl_core.engine.journal import Journal
from pipeline import cli
from pipeline.commands import run as run_command
from pipeline.errors import NotFinishedError, TrackingError, UserError
from pipeline.execution.perform import Outcome
from pipeline.execution.run import RunServices
from pipeline.jobs.folder import JobFolder
from pipeline.jobs.liveness import is_under_way
from pipeline.jobs.state import RunStatus
from pipeline.tracking.find import find_tracker
from pipeline.tracking.foreground import ForegroundTracker
from pipeline.tracking.mlflow.address import StoreAddress
from pipeline.tracking.mlflow.charts import VIEW_TAG
from pipeline.tracking.mlflow.client import RunUploader, refusals
from pipeline.tracking.mlflow.link import RunLink, is_shown, run_link
from pipeline.tracking.mlflow.lock import tracking_lock
from pipeline.tracking.mlflow.models import EncoderModels
from pipeline.tracking.mlflow.store import MlflowStore
from pipeline.tracking.port import StoreRefusedError
from pipeline.tracking.sync import PAUSES, follow_run, sync_journals, sync_run
from pipeline.tracking.tracked import read_tracked_run

# MLflow's tables use what SQLAlchemy 2.1 warns about.
pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")

PROCESSES = 32 if os.environ.get("ASL_LONG_TESTS") else 8
FINGERPRINT = "0123abcd" * 4
PNG = b"\x89PNG\r\n\x1a\n"

Fill = Callable[[Journal], None]


@pytest.fixture(scope="session")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without runs; making one takes seconds, copying it does not."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def root(tmp_path: Path, tables: Path) -> Path:
    shutil.copy(tables, tmp_path / "mlflow.db")
    (tmp_path / ".dvc").mkdir()
    return tmp_path


def write_attempt(
    root: Path,
    fill: Fill = lambda _: None,
    *,
    stage: str = "pretrain",
    key: str = "asl",
    fingerprint: str = FINGERPRINT,
    end: str | None = "SUCCEEDED",
    lr: float = 0.5,
) -> JobFolder:
    """Write one attempt as the run action does."""
    job = JobFolder.of(root / ".asl", fingerprint)
    with Journal.open(job.journal) as journal:
        names = {"stage": stage, "key": key, "suite": "demo", "fingerprint": fingerprint}
        journal.tags({**names, "scale": "reduced", "git.commit": "c0ffee"})
        if stage == "pretrain":
            journal.params({"method": "asl", "lr": lr})
        journal.dataset("icons", "md5:" + "e" * 40, "data/icons", "train")
        fill(journal)
        if end is not None:
            journal.end(end, "" if end == "SUCCEEDED" else "the loss is nan")
    return job


def client(root: Path) -> MlflowClient:
    return MlflowClient(tracking_uri=f"sqlite:///{root / 'mlflow.db'}")


def ingest(root: Path, job: JobFolder) -> RunLink:
    return MlflowStore(root).ingest(job.journal, job.details)


def history(root: Path, run_id: str, key: str) -> list[tuple[int, float]]:
    points = client(root).get_metric_history(run_id, key)
    return sorted((point.step, point.value) for point in points)


def all_runs(root: Path) -> list[Run]:
    experiment = client(root).get_experiment_by_name("asl/demo")
    assert experiment is not None
    return list(client(root).search_runs([experiment.experiment_id]))


def losses(*steps: int, stage: str = "pretrain") -> Fill:
    def fill(journal: Journal) -> None:
        for step in steps:
            journal.metrics(step, {f"{stage}/loss": float(step)})

    return fill


def test_a_run_has_params_tags_curves_dataset_and_the_times_of_its_journal(root: Path) -> None:
    job = write_attempt(root, losses(1, 2, 3))
    link = ingest(root, job)
    stored = client(root).get_run(link.run_id)
    assert stored.info.run_name == "pretrain/asl"
    assert stored.data.params == {"method": "asl", "lr": "0.5"}
    assert stored.data.tags["asl.fingerprint"] == FINGERPRINT
    assert stored.data.tags["git.commit"] == "c0ffee"
    assert stored.data.tags["mlflow.source.git.commit"] == "c0ffee"
    assert history(root, link.run_id, "pretrain/loss") == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert stored.inputs is not None
    (used,) = stored.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("icons", "md5:" + "e" * 32)
    run = read_tracked_run(job.journal)
    assert (stored.info.status, stored.info.start_time) == ("FINISHED", run.start_ms)
    assert stored.info.end_time == run.end_ms


def test_what_was_watched_is_curves_of_the_run_and_of_its_experiment(root: Path) -> None:
    def fill(journal: Journal) -> None:
        for step in (0, 4):
            journal.metrics(step, {"watch/knn_acc1_cls": 30.0 + step})

    link = ingest(root, write_attempt(root, fill))
    parents = [run for run in all_runs(root) if run.data.tags["asl.stage"] == "experiment"]
    for run_id in (link.run_id, *(run.info.run_id for run in parents)):
        assert history(root, run_id, "watch/knn_acc1_cls") == [(0, 30.0), (4, 34.0)]
    assert len(parents) == 1


def test_what_it_cost_is_there_once_it_is_final_and_summed_in_the_experiments_run(
    root: Path,
) -> None:
    def fill(journal: Journal) -> None:
        journal.tags({"allotted.gpus": "2", "allotted.cpus": "4"})

    begun = ingest(root, write_attempt(root, fill, end="INTERRUPTED"))
    assert not [n for n in client(root).get_run(begun.run_id).data.metrics if "cost" in n]
    job = write_attempt(root, fill)
    measured = write_attempt(root, fill, stage="linprobe", fingerprint="fedc" * 8)
    links = [ingest(root, job), ingest(root, measured), ingest(root, measured)]
    found = [client(root).get_run(link.run_id).data.metrics for link in links]
    names = {"cost/hours", "cost/gpu_hours", "cost/cpu_hours", "cost/lost_hours"}
    for metrics in found:
        assert {name for name in metrics if name.startswith("cost/")} == names  # no energy: not 0
        assert metrics["cost/gpu_hours"] == pytest.approx(2 * metrics["cost/hours"])
    (parent,) = (run for run in all_runs(root) if run.data.tags["asl.stage"] == "experiment")
    for name in names:
        assert parent.data.metrics[name] == pytest.approx(found[0][name] + found[1][name])


@pytest.mark.parametrize("forget", [False, True], ids=["with its link", "with its link lost"])
def test_a_replay_adds_nothing(root: Path, forget: bool) -> None:
    job = write_attempt(root, losses(1, 2))
    first = ingest(root, job)
    if forget:
        (job.folder / "mlflow.json").unlink()
    second = ingest(root, job)
    assert second == first
    assert len(all_runs(root)) == 2  # the experiment and its stage
    assert history(root, first.run_id, "pretrain/loss") == [(1, 1.0), (2, 2.0)]


def test_what_arrived_of_a_backlog_is_not_sent_again(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.tracking.mlflow.client.PART", 5)
    ingest(root, write_attempt(root, losses(1), end=None))

    def resumed(journal: Journal) -> None:
        journal.resume(1)
        losses(*range(2, 31))(journal)

    job = write_attempt(root, resumed)
    sent: list[int] = []
    log_batch, left = MlflowClient.log_batch, 4

    def failing(self: MlflowClient, run_id: str, metrics: Any = (), *rest: Any) -> None:
        nonlocal left
        steps = [metric.step for metric in metrics if metric.key == "pretrain/loss"]
        left -= bool(steps)
        if steps and left == 0:
            raise MlflowException("the server is gone")
        log_batch(self, run_id, metrics, *rest)
        sent.extend(steps)

    monkeypatch.setattr(MlflowClient, "log_batch", failing)
    with pytest.raises(TrackingError, match="the server is gone"):
        ingest(root, job)
    assert 10 <= len(sent) <= 20
    link = ingest(root, job)
    assert history(root, link.run_id, "pretrain/loss") == [(s, float(s)) for s in range(1, 31)]
    # and once more to the run of the experiment, which has curves that are final; the last of them
    # is a result, which the encoder's model has too
    assert sorted(sent) == sorted([*range(2, 31), *range(1, 31), 30])


def test_what_goes_on_after_an_end_is_not_complete_before_it_is_all_there(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = write_attempt(root, losses(1, 2), end="INTERRUPTED")
    assert ingest(root, job).complete

    def resumed(journal: Journal) -> None:
        journal.resume(2)
        losses(3)(journal)

    write_attempt(root, resumed)

    def fail(*_: Any, **__: Any) -> None:
        raise MlflowException("the server is gone")

    with monkeypatch.context() as broken:
        broken.setattr(MlflowClient, "set_terminated", fail)
        with pytest.raises(TrackingError, match="the server is gone"):
            ingest(root, job)
    link = run_link(root, FINGERPRINT)
    assert link is not None
    assert not link.complete
    assert ingest(root, job).complete
    assert client(root).get_run(link.run_id).info.status == "FINISHED"


def test_a_crash_between_sending_and_noting_it_doubles_nothing(root: Path) -> None:
    job = write_attempt(root, losses(1, 2))
    first = ingest(root, job)
    link = json.loads((job.folder / "mlflow.json").read_text())
    (job.folder / "mlflow.json").write_text(json.dumps({**link, "done": {}, "complete": False}))
    assert ingest(root, job).run_id == first.run_id
    assert history(root, first.run_id, "pretrain/loss") == [(1, 1.0), (2, 2.0)]


def test_a_run_grows_while_its_journal_does(root: Path) -> None:
    job = JobFolder.of(root / ".asl", FINGERPRINT)
    write_attempt(root, losses(1, 2), end=None)
    first = ingest(root, job)
    with (job.journal / "attempt-000.jsonl").open("a") as file:
        line = {"v": 1, "kind": "metrics", "t": 5, "step": 3, "values": {"pretrain/loss": 3.0}}
        file.write(json.dumps(line) + "\n")
    assert ingest(root, job).run_id == first.run_id
    assert history(root, first.run_id, "pretrain/loss") == [(1, 1.0), (2, 2.0), (3, 3.0)]


def test_points_that_a_resume_voided_are_gone_though_they_had_been_stored(root: Path) -> None:
    job = write_attempt(root, losses(1, 2, 3, 4), end="FAILED")
    failed = ingest(root, job)
    assert client(root).get_run(failed.run_id).info.status == "FAILED"

    def resumed(journal: Journal) -> None:
        journal.resume(2)
        journal.metrics(3, {"pretrain/loss": -3.0})

    link = ingest(root, write_attempt(root, resumed))
    assert history(root, link.run_id, "pretrain/loss") == [(1, 1.0), (2, 2.0), (3, -3.0)]
    assert client(root).get_run(link.run_id).info.status == "FINISHED"
    assert client(root).get_run(link.run_id).data.tags["asl.attempts"] == "2"
    assert [run.info.run_name for run in all_runs(root)].count("pretrain/asl") == 1


def test_a_resume_that_voids_nothing_goes_on_in_the_same_run(root: Path) -> None:
    first = ingest(root, write_attempt(root, losses(1, 2), end="INTERRUPTED"))

    def resumed(journal: Journal) -> None:
        journal.resume(2)
        journal.metrics(3, {"pretrain/loss": 3.0})

    second = ingest(root, write_attempt(root, resumed))
    assert second.run_id == first.run_id
    assert history(root, second.run_id, "pretrain/loss") == [(1, 1.0), (2, 2.0), (3, 3.0)]


def test_the_results_of_all_stages_stand_in_the_run_of_their_experiment(root: Path) -> None:
    def result(name: str, value: float) -> Fill:
        return lambda journal: journal.metrics(0, {name: value})

    pretrain = ingest(root, write_attempt(root, result("flops_train_g", 0.5)))
    probe = ingest(
        root, write_attempt(root, result("lp_acc1", 61.5), stage="linprobe", fingerprint="b" * 32)
    )
    assert probe.parent_run_id is not None
    assert pretrain.parent_run_id == probe.parent_run_id
    parent = client(root).get_run(probe.parent_run_id)
    assert parent.info.run_name == "asl"
    results = {n: v for n, v in parent.data.metrics.items() if not n.startswith("cost/")}
    assert results == {"flops_train_g": 0.5, "lp_acc1": 61.5}
    assert parent.data.params == {"method": "asl", "lr": "0.5"}
    assert parent.data.tags["asl.stage"] == "experiment"
    child = client(root).get_run(probe.run_id)
    assert child.data.tags["mlflow.parentRunId"] == probe.parent_run_id


def test_the_experiment_failed_until_its_failed_stage_was_made_again(root: Path) -> None:
    ingest(root, write_attempt(root))
    failed = write_attempt(root, stage="detect", fingerprint="d" * 32, end="FAILED")
    parent_id = ingest(root, failed).parent_run_id
    assert parent_id is not None
    assert client(root).get_run(parent_id).info.status == "FAILED"
    ingest(root, write_attempt(root, stage="detect", fingerprint="f" * 32))
    assert client(root).get_run(parent_id).info.status == "FINISHED"


def test_the_run_of_an_experiment_has_the_curves_of_its_finished_pretraining(root: Path) -> None:
    parent_id = ingest(root, write_attempt(root, losses(1, 2, 3), end="INTERRUPTED")).parent_run_id
    assert parent_id is not None
    assert history(root, parent_id, "pretrain/loss") == []

    def resumed(journal: Journal) -> None:
        journal.resume(2)
        journal.metrics(3, {"pretrain/loss": -3.0})

    assert ingest(root, write_attempt(root, resumed)).parent_run_id == parent_id
    assert history(root, parent_id, "pretrain/loss") == [(1, 1.0), (2, 2.0), (3, -3.0)]


def test_an_experiment_whose_encoder_is_trained_anew_has_a_new_run(root: Path) -> None:
    old = ingest(root, write_attempt(root, lr=0.5))
    new = ingest(root, write_attempt(root, lr=0.25, fingerprint="e" * 32))
    probe = ingest(root, write_attempt(root, stage="linprobe", fingerprint="b" * 32))
    assert new.parent_run_id is not None
    assert old.parent_run_id != new.parent_run_id == probe.parent_run_id
    assert client(root).get_run(new.parent_run_id).data.params["lr"] == "0.25"


def test_samples_of_other_machines_are_shown_beside_those_of_the_first(root: Path) -> None:
    job = write_attempt(root, losses(1))
    key, expected = "system/n2/cpu_utilization_percentage", []
    for step in (3, 9):  # a resumed job has a file more there too
        with Journal.open(job.node_journal(4)) as node:
            node.metrics(step, {key: 50.0})
        expected.append((step, 50.0))
        link = ingest(root, job)
        assert history(root, link.run_id, key) == expected
        assert history(root, link.run_id, "pretrain/loss") == [(1, 1.0)]
    assert link.covers(read_tracked_run(job.journal).lines)


def test_the_comparison_is_a_saved_view_that_people_may_change(root: Path) -> None:
    experiment_id = ingest(root, write_attempt(root)).experiment_id
    text = client(root).get_experiment(experiment_id).tags[VIEW_TAG]
    state = json.loads(json.loads(text)["state"])
    # what the view filters by is said in MLflow's own language and finds the experiment's run
    (found,) = client(root).search_runs([experiment_id], state["searchFilter"])
    assert found.info.run_name == "asl"
    client(root).set_experiment_tag(experiment_id, VIEW_TAG, "changed")
    ingest(root, write_attempt(root, stage="linprobe", fingerprint="b" * 32))
    assert client(root).get_experiment(experiment_id).tags[VIEW_TAG] == "changed"
    client(root).delete_experiment_tag(experiment_id, VIEW_TAG)
    ingest(root, write_attempt(root, stage="detect", fingerprint="d" * 32))
    assert VIEW_TAG in client(root).get_experiment(experiment_id).tags


def test_stages_without_an_experiment_have_no_parent(root: Path) -> None:
    assert ingest(root, write_attempt(root, stage="prepare", key="icons")).parent_run_id is None


def test_pictures_and_texts_are_copied_and_weights_are_not(root: Path) -> None:
    def fill(journal: Journal) -> None:
        losses(1, 2)(journal)
        journal.artifact("pictures/a.png")
        journal.artifact("../../outside.png")

    job = write_attempt(root, fill)
    out = root / "runs" / "pretrain" / "asl"
    (out / "pictures").mkdir(parents=True)
    (out / "pictures" / "a.png").write_bytes(PNG)
    (root / "runs" / "outside.png").write_bytes(PNG)
    (out / "config.json").write_text("{}")
    (out / "method.safetensors").write_bytes(b"123")
    encoder = root / "runs" / "encoder" / "asl"
    encoder.mkdir(parents=True)
    (encoder / "encoder.safetensors").write_bytes(b"12345")
    other = encoder.with_name("mae")
    other.mkdir()
    (other / "encoder.safetensors").write_bytes(b"another run's")
    (out.parent / "asl.json").write_text('{"loss": 1}')
    link = MlflowStore(root).ingest(job.journal, out)
    stored = client(root)
    top = {item.path for item in stored.list_artifacts(link.run_id)}
    assert top == {"config.json", "metrics.json", "weights.txt", "pictures"}
    pictures = {item.path for item in stored.list_artifacts(link.run_id, "pictures")}
    assert pictures == {"pictures/a.png", "pictures/curves.png"}
    folder = root / "mlartifacts" / "demo" / link.run_id / "artifacts"
    assert (folder / "weights.txt").read_text() == (
        "runs/encoder/asl/encoder.safetensors  5 bytes  sha256 "
        "5994471abb01112afcc18159f6cc74b4f511b99806da59b3caf5a9c173cacfc5\n"
        "runs/pretrain/asl/method.safetensors  3 bytes  sha256 "
        "a665a45920422f9d417e4867efdc4fb8a04a1f3fff1fa07e998e86f7f7a27ae3\n"
    )


def test_pictures_that_come_later_are_still_taken(root: Path) -> None:
    job = write_attempt(root, lambda journal: journal.artifact("a.png"))
    assert not ingest(root, job).complete
    job.details.mkdir(parents=True)
    (job.details / "a.png").write_bytes(PNG)
    link = ingest(root, job)
    assert link.complete
    assert [item.path for item in client(root).list_artifacts(link.run_id)] == ["a.png"]


@pytest.mark.parametrize("which", ["the run", "its parent"])
def test_what_was_deleted_in_mlflow_is_made_again(root: Path, which: str) -> None:
    job = write_attempt(root, losses(1, 2))
    first = ingest(root, job)
    gone = first.run_id if which == "the run" else first.parent_run_id
    assert gone is not None
    client(root).delete_run(gone)
    second = ingest(root, job)
    assert gone not in (second.run_id, second.parent_run_id)
    assert history(root, second.run_id, "pretrain/loss") == [(1, 1.0), (2, 2.0)]
    assert sorted(str(run.info.run_name) for run in all_runs(root)) == ["asl", "pretrain/asl"]


def test_a_run_whose_process_lives_is_running(root: Path) -> None:
    link = ingest(root, write_attempt(root, end=None))
    assert client(root).get_run(link.run_id).info.status == "RUNNING"
    assert link.parent_run_id is not None
    assert client(root).get_run(link.parent_run_id).info.status == "RUNNING"


def test_a_run_without_an_end_whose_process_is_gone_was_killed(root: Path) -> None:
    job = write_attempt(root, losses(1, 2), end=None)
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    path = job.journal / "attempt-000.jsonl"
    path.write_text(path.read_text().replace(f'"pid": {os.getpid()}', f'"pid": {child.pid}'))
    run = read_tracked_run(job.journal)
    assert (run.status, run.end_ms) == ("INTERRUPTED", run.records[-1].time_ms)
    assert client(root).get_run(ingest(root, job).run_id).info.status == "KILLED"


def test_a_run_elsewhere_is_running_while_it_writes_and_killed_when_silent(root: Path) -> None:
    job = write_attempt(root, losses(1), end=None)
    path = job.journal / "attempt-000.jsonl"
    elsewhere = path.read_text().replace(f'"{socket.gethostname()}"', '"some-other-host"')
    path.write_text(elsewhere)
    assert read_tracked_run(job.journal).status == "RUNNING"
    records = [{**json.loads(line), "t": 1000} for line in elsewhere.splitlines()]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert read_tracked_run(job.journal).status is RunStatus.INTERRUPTED


def test_a_journal_that_does_not_say_whose_it_is_is_refused_in_one_line(root: Path) -> None:
    job = JobFolder.of(root / ".asl", FINGERPRINT)
    Journal.open(job.journal).close()
    with pytest.raises(TrackingError, match=r"does not say which run it is of"):
        ingest(root, job)


def test_a_server_that_refuses_costs_seconds_and_shows_no_password(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter22@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TrackingError) as caught:
        ingest(root, write_attempt(root))
    assert str(caught.value) == "http://***@127.0.0.1:9: the server does not answer"


def test_the_link_of_a_fingerprint_is_found_without_mlflow(root: Path) -> None:
    assert run_link(root, FINGERPRINT) is None
    link = ingest(root, write_attempt(root))
    assert run_link(root, FINGERPRINT) == link
    assert f"/#/experiments/{link.experiment_id}/runs/{link.run_id}" in link.fragment


def test_the_module_of_the_store_loads_no_mlflow() -> None:
    code = "import sys, pipeline.tracking.mlflow.store; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_password_in_the_address_is_not_part_of_a_stores_identity(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = set()
    for password in ("one-secret", "another-one"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"https://me:{password}@host/")
        digests.add(StoreAddress.of(root).digest)
    assert len(digests) == 1


def test_sync_sends_what_is_missing_and_takes_pictures_of_no_other_run(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "pipeline")
    for fingerprint in ("a" * 32, "b" * 32):
        write_attempt(root, lambda journal: journal.artifact("a.png"), fingerprint=fingerprint)
    out = root / "runs" / "pretrain" / "asl"
    out.mkdir(parents=True)
    (out / "a.png").write_bytes(PNG)
    (out.parent / "asl.json").write_text(json.dumps({"fingerprint": "b" * 32}))
    Journal.open(JobFolder.of(root / ".asl", "c" * 32).journal).close()
    assert sync_journals(root, MlflowStore(root)) == 2
    assert caplog.text.count("demo: pretrain@asl: sent") == 1  # the other lacks a picture
    assert "cccccccccccc: skipped" in caplog.text
    older, newer = run_link(root, "a" * 32), run_link(root, "b" * 32)
    assert older is not None
    assert newer is not None
    assert (older.complete, newer.complete) == (False, True)
    caplog.clear()
    assert sync_journals(root, MlflowStore(root)) == 2
    assert "sent" not in caplog.text


def test_sync_stops_at_a_store_that_refuses_and_says_how_many_wait(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    for fingerprint in ("a" * 32, "b" * 32):
        write_attempt(root, fingerprint=fingerprint)
    with pytest.raises(NotFinishedError, match=r"2 of 2 runs still to be sent"):
        sync_journals(root, MlflowStore(root))


@pytest.mark.parametrize(("code", "of_one_run"), [(413, True), (401, False), (503, False)])
def test_a_file_that_is_too_large_keeps_no_other_run_from_the_store(
    root: Path, code: int, of_one_run: bool
) -> None:
    response = requests.Response()
    response.status_code = code
    with pytest.raises(TrackingError) as caught, refusals(StoreAddress.of(root)):
        raise requests.HTTPError(f"{code} for url", response=response)
    assert isinstance(caught.value, StoreRefusedError) != of_one_run


def needs_mlflow(code: str, *arguments: object) -> bool:
    """Say whether a process that runs this code has loaded MLflow at its end."""
    code = f"import sys; from pathlib import Path\n{code}\nsys.exit('mlflow' in sys.modules)"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return bool(subprocess.run(command, check=False).returncode)


def test_a_link_that_is_trusted_spares_a_whole_run_mlflow(root: Path) -> None:
    job = write_attempt(root)
    code = (
        "from pipeline.tracking.mlflow.store import MlflowStore\n"
        "job = Path(sys.argv[1])\n"
        "MlflowStore(job.parents[2], trust_links=True).ingest(job / 'journal', job / 'out/details')"
    )
    assert needs_mlflow(code, job.folder)
    assert len(all_runs(root)) == 2
    assert not needs_mlflow(code, job.folder)


def test_a_link_that_is_trusted_does_not_hide_a_later_attempt(root: Path) -> None:
    assert ingest(root, write_attempt(root, losses(1), end="FAILED")).complete
    job = write_attempt(root, losses(2))
    link = MlflowStore(root, trust_links=True).ingest(job.journal, job.details)
    assert client(root).get_run(link.run_id).info.status == "FINISHED"
    assert history(root, link.run_id, "pretrain/loss") == [(1, 1.0), (2, 2.0)]


def test_a_link_to_another_store_is_not_trusted(root: Path) -> None:
    job = write_attempt(root)
    first = ingest(root, job)
    path = job.folder / "mlflow.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"store": "another"}))
    link = MlflowStore(root, trust_links=True).ingest(job.journal, job.details)
    assert link == first


def test_a_picture_that_goes_while_it_is_copied_is_missing_and_no_error(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = write_attempt(root, lambda journal: journal.artifact("a.png"))
    job.details.mkdir(parents=True)
    (job.details / "a.png").write_bytes(PNG)

    def gone(*_: object, **__: object) -> None:
        raise FileNotFoundError(job.details / "a.png")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_artifact", gone)
        assert not ingest(root, job).complete
    assert ingest(root, job).complete


def test_a_run_is_not_whole_without_a_reference_to_its_weights(root: Path) -> None:
    job = write_attempt(root, lambda journal: journal.artifact("encoder.safetensors"))
    encoder = job.out / "encoder"
    encoder.mkdir(parents=True)
    assert not ingest(root, job).complete
    (encoder / "encoder.safetensors").write_bytes(b"12345")
    link = ingest(root, job)
    assert link.complete
    assert [item.path for item in client(root).list_artifacts(link.run_id)] == ["weights.txt"]


def test_sync_of_one_run_brings_that_run_and_prints_nothing(
    root: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write_attempt(root, fingerprint="a" * 32)
    write_attempt(root, fingerprint="b" * 32, key="mae")
    monkeypatch.chdir(root)
    assert cli.run_command(["sync", "aaaa"]) == 0
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")
    assert run_link(root, "a" * 32) is not None
    assert run_link(root, "b" * 32) is None


@pytest.mark.parametrize(("beginning", "said"), [("c", "no runs"), ("a", "2 runs")])
def test_sync_of_one_run_refuses_a_name_that_is_not_one_runs(
    root: Path, beginning: str, said: str
) -> None:
    for fingerprint in ("ab" * 16, "ac" * 16):
        write_attempt(root, fingerprint=fingerprint)
    with pytest.raises(UserError, match=said):
        sync_run(root, beginning, MlflowStore(root))


def test_sync_of_one_run_names_it_when_the_store_does_not_answer(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    write_attempt(root)
    with pytest.raises(NotFinishedError, match=r"run asl-pipe sync again: .* does not answer"):
        sync_run(root, FINGERPRINT, MlflowStore(root))


def test_sync_of_one_run_waits_for_absent_artifacts_without_holding_the_lock(root: Path) -> None:
    job = write_attempt(root, lambda journal: journal.artifact("a.png"))
    paused: list[float] = []

    def pause(seconds: float) -> None:
        with tracking_lock(root, seconds=0):
            paused.append(seconds)
        if len(paused) == 2:
            job.details.mkdir(parents=True)
            (job.details / "a.png").write_bytes(PNG)

    sync_run(root, FINGERPRINT, MlflowStore(root, trust_links=True), pause=pause)
    assert paused == list(PAUSES[:2])
    link = run_link(root, FINGERPRINT)
    assert link is not None
    assert link.complete
    assert len(all_runs(root)) == 2


def test_sync_of_one_run_brings_the_encoder_it_used_first(root: Path) -> None:
    old = ingest(root, write_attempt(root, fingerprint="a" * 32))
    runs = (("a", "pretrain"), ("b", "pretrain"), ("c", "linprobe"))
    for letter, stage in runs:
        write_attempt(root, stage=stage, fingerprint=letter * 32)
    sync_run(root, "c", MlflowStore(root, trust_links=True))
    encoder, probe = run_link(root, "b" * 32), run_link(root, "c" * 32)
    assert encoder is not None
    assert probe is not None
    assert probe.parent_run_id == encoder.parent_run_id != old.parent_run_id


def test_sync_of_one_run_gives_up_on_artifacts_that_stay_away(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_attempt(root, lambda journal: journal.artifact("a.png"))
    paused: list[float] = []
    sync_run(root, FINGERPRINT, MlflowStore(root, trust_links=True), pause=paused.append)
    assert paused == list(PAUSES)
    assert "0123abcd0123: sent to MLflow without the files that are gone" in caplog.text


def test_sync_of_one_run_does_not_wait_for_what_a_failed_run_never_wrote(root: Path) -> None:
    write_attempt(root, lambda journal: journal.artifact("a.png"), end="FAILED")
    paused: list[float] = []
    sync_run(root, FINGERPRINT, MlflowStore(root), pause=paused.append)
    assert paused == []


def test_the_report_begins_when_all_runs_before_it_are_in_the_store(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "params.yaml").write_text("")
    monkeypatch.chdir(root)
    ingest(root, write_attempt(root, fingerprint="a" * 32))
    write_attempt(root, fingerprint="b" * 32, key="mae")

    def report(project: object, stage: str, key: str, services: RunServices, _: object) -> Outcome:
        assert all(run_link(root, letter * 32) is not None for letter in "ab")
        assert isinstance(services.presenter, ForegroundTracker)
        return Outcome(metrics={}, seconds=1.0)

    monkeypatch.setattr("pipeline.execution.run.run_stage", report)
    run_command.run("report")


def test_a_report_for_which_nothing_waits_loads_no_mlflow(root: Path) -> None:
    ingest(root, write_attempt(root))
    code = (
        "from pipeline.commands.run import find_presenter; "
        "from pipeline.tracking.find import find_tracker; "
        "root = Path(sys.argv[1]); find_presenter(find_tracker(root), root, 'report')"
    )
    assert not needs_mlflow(code, root)


def test_a_report_without_a_store_is_made_after_one_warning(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    for fingerprint in ("a" * 32, "b" * 32):
        write_attempt(root, fingerprint=fingerprint)
    assert run_command.find_presenter(find_tracker(root), root, "report") is None
    assert len(caplog.records) == 1
    assert "2 of 2 runs still to be sent" in caplog.text


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_many_processes_that_find_no_store_lose_nothing(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from pipeline.tracking.mlflow.store import *; "
        "job = Path(sys.argv[1]); store = MlflowStore(job.parents[2]); "
        "store.ingest(job / 'journal', job / 'out/details')"
    )
    jobs = [
        write_attempt(
            tmp_path, losses(1, stage=stage), stage=stage, key=f"e{i}", fingerprint=f"{stage}{i}"
        )
        for stage in ("pretrain", "linprobe")
        for i in range(PROCESSES // 2)
    ]
    started = [subprocess.Popen([sys.executable, "-c", code, str(job.folder)]) for job in jobs]
    assert [process.wait() for process in started] == [0] * PROCESSES
    runs = all_runs(tmp_path)
    assert len(runs) == PROCESSES + PROCESSES // 2  # the experiments' own
    for run in runs:
        stage = run.data.tags["asl.stage"]
        if stage != "experiment":
            assert len(history(tmp_path, run.info.run_id, f"{stage}/loss")) == 1


def scored(encoder: str, accuracy: float) -> Fill:
    """Fill the journal of a linear probe of an encoder."""

    def fill(journal: Journal) -> None:
        journal.tags({"encoder_fingerprint": encoder})
        journal.metrics(0, {"lp_acc1": accuracy})

    return fill


def test_an_encoder_is_a_model_that_has_the_results_of_all_its_stages(root: Path) -> None:
    made = write_attempt(root, lambda journal: journal.metrics(8, {"pretrain/loss": 0.5}))
    encoder = made.out / "encoder"
    encoder.mkdir(parents=True)
    (encoder / "encoder.safetensors").write_bytes(b"weights")
    pretrain = ingest(root, made)
    probe = write_attempt(root, scored(FINGERPRINT, 40.0), stage="linprobe", fingerprint="aa" * 16)
    linprobe = ingest(root, probe)
    (probe.folder / "mlflow.json").unlink()  # all of it is sent a second time
    assert ingest(root, probe).run_id == linprobe.run_id
    (model,) = client(root).search_logged_models([pretrain.experiment_id])
    assert (model.name, model.status, model.source_run_id) == ("asl", "READY", pretrain.run_id)
    assert model.metrics is not None
    found = sorted((m.key, m.value, m.run_id, m.dataset_name) for m in model.metrics)
    assert found == [
        ("lp_acc1", 40.0, linprobe.run_id, "icons"),
        ("pretrain/loss", 0.5, pretrain.run_id, "icons"),
    ]
    (artifact,) = client(root).list_logged_model_artifacts(model.model_id)
    assert artifact.path == "weights.txt"
    used = client(root).get_run(linprobe.run_id).inputs
    assert used is not None
    assert [each.model_id for each in used.model_inputs] == [model.model_id]
    output = client(root).get_run(pretrain.run_id).outputs
    assert output is not None
    assert [each.model_id for each in output.model_outputs] == [model.model_id]


def test_the_registry_has_each_encoder_once_and_knows_the_best(root: Path) -> None:
    def best() -> str:
        return client(root).get_model_version_by_alias("asl-demo", "best").tags["asl.experiment"]

    for number, (key, accuracy) in enumerate((("mae", 40.0), ("asl", 50.0), ("dle", 45.0))):
        encoder = f"{number}e" * 16
        ingest(root, write_attempt(root, key=key, fingerprint=encoder))
        probe = f"{number}f" * 16
        fill = scored(encoder, accuracy)
        ingest(root, write_attempt(root, fill, stage="linprobe", key=key, fingerprint=probe))
        assert best() == ("mae", "asl", "asl")[number]
    versions = client(root).search_model_versions("name = 'asl-demo'")
    assert sorted(v.tags["asl.experiment"] for v in versions) == ["asl", "dle", "mae"]


def test_a_stage_of_an_encoder_that_was_made_elsewhere_is_shown_without_a_model(
    root: Path,
) -> None:
    probe = write_attempt(root, scored("ee" * 16, 40.0), stage="linprobe")
    link = ingest(root, probe)
    assert link.complete
    assert not client(root).search_logged_models([link.experiment_id])


def test_pictures_of_several_steps_are_one_series_each_stored_once(root: Path) -> None:
    def fill(journal: Journal) -> None:
        for step in (5, 10):
            journal.artifact(f"pictures/reconstructions/step-{step:06d}.png")

    job = write_attempt(root, fill)
    folder = job.details / "pictures/reconstructions"
    folder.mkdir(parents=True)
    for step, colour in ((5, "red"), (10, "blue")):
        Image.new("RGB", (8, 6), colour).save(folder / f"step-{step:06d}.png")
    link = ingest(root, job)
    assert link.complete
    (job.folder / "mlflow.json").unlink()  # all of it is sent a second time
    ingest(root, job)
    names = [file.path for file in client(root).list_artifacts(link.run_id, "images")]
    pictures = sorted(name for name in names if name.endswith(".png"))
    assert [name.split("+")[:3] for name in pictures] == [
        ["images/reconstructions", "step", "10"], ["images/reconstructions", "step", "5"],
    ]  # fmt: skip


class Following:
    """A run that is written while it is followed: each second a point, and the time goes by."""

    def __init__(self, root: Path, end: int) -> None:
        self.root, self.end, self.now = root, end, 0.0
        self.job = JobFolder.of(root / ".asl", FINGERPRINT)
        write_attempt(root, end=None)
        self.path = max(self.job.journal.glob("attempt-*.jsonl"))

    def pause(self, seconds: float) -> None:
        self.now += seconds
        values = {"pretrain/loss": 1.0 / self.now}
        line = {"v": 1, "kind": "metrics", "t": int(self.now), "step": int(self.now)}
        text = json.dumps({**line, "values": values}) + "\n"
        if self.now >= self.end:
            text += '{"v": 1, "kind": "end", "t": 9, "status": "SUCCEEDED", "message": ""}\n'
        with self.path.open("a") as file:
            file.write(text)

    def clock(self) -> float:
        return self.now


class Unreliable:
    """A store that refuses as often as asked; notes when it was called."""

    def __init__(self, run: Following, refusals: int) -> None:
        self.run, self.refusals, self.calls = run, refusals, []
        self.store = MlflowStore(run.root)
        self.title, self.is_shown, self.page_of = "MLflow", is_shown, self.store.page_of

    def ingest(self, journal: Path, out: Path) -> object:
        self.calls.append(self.run.now)
        if len(self.calls) <= self.refusals:
            raise TrackingError("refused")
        return self.store.ingest(journal, out)


def test_a_run_is_shown_while_it_is_made_and_ends_with_each_point_once(root: Path) -> None:
    run = Following(root, end=100)
    tracker = Unreliable(run, refusals=0)
    follow_run(root, FINGERPRINT, tracker, None, run.pause, run.clock)
    assert tracker.calls == [30.0, 60.0, 90.0, 100.0]
    link = run_link(root, FINGERPRINT)
    assert link is not None
    assert link.status == "SUCCEEDED"
    stored = history(root, link.run_id, "pretrain/loss")
    assert stored == [(step, 1.0 / step) for step in range(1, 101)]


def test_a_store_that_is_down_is_asked_more_rarely_and_gets_everything_when_it_is_back(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Following(root, end=290)
    tracker = Unreliable(run, refusals=2)
    follow_run(root, FINGERPRINT, tracker, None, run.pause, run.clock)
    assert tracker.calls == [30.0, 90.0, 210.0, 240.0, 270.0, 290.0]
    assert [r.getMessage() for r in caplog.records] == ["not sent to MLflow for now: refused"]
    link = run_link(root, FINGERPRINT)
    assert link is not None
    assert len(history(root, link.run_id, "pretrain/loss")) == 290


def test_a_process_that_follows_a_run_ends_when_that_is_killed(root: Path) -> None:
    trainer = subprocess.Popen(["sleep", "60"])
    job = write_attempt(root, end=None)
    path = max(job.journal.glob("attempt-*.jsonl"))
    lines = path.read_text().splitlines()
    begin = json.loads(lines[0]) | {"pid": trainer.pid, "t": int(time.time() * 1000)}
    path.write_text("\n".join([json.dumps(begin), *lines[1:]]) + "\n")
    assert is_under_way(job.journal)
    trainer.kill()
    trainer.wait()
    assert not is_under_way(job.journal)
    follow_run(root, FINGERPRINT, MlflowStore(root))
    link = run_link(root, FINGERPRINT)
    assert link is not None
    assert link.status == "INTERRUPTED"


def test_a_run_whose_link_is_lost_is_found_again_though_it_was_resumed(root: Path) -> None:
    def fill(journal: Journal) -> None:
        journal.resume(0, 3)  # as every training run begins
        for step, loss in ((1, 2.5), (2, float("inf")), (3, float("nan"))):
            journal.metrics(step, {"pretrain/loss": loss})

    job = write_attempt(root, fill)
    first = ingest(root, job)
    (job.folder / "mlflow.json").unlink()
    assert ingest(root, job).run_id == first.run_id
    assert len(client(root).get_metric_history(first.run_id, "pretrain/loss")) == 3


def test_a_copy_of_a_journal_that_has_stayed_behind_takes_nothing_from_the_store(
    root: Path,
) -> None:
    job = write_attempt(root, losses(1, 2, 3))
    link = ingest(root, job)
    other = root / "elsewhere"
    (other / ".dvc").mkdir(parents=True)
    copy = JobFolder.of(other / ".asl", FINGERPRINT)
    shutil.copytree(job.journal, copy.journal)
    (path,) = copy.journal.iterdir()
    lines = path.read_text().splitlines(keepends=True)
    kept = next(i for i, line in enumerate(lines) if '"step": 2' in line)
    path.write_text("".join(lines[: kept + 1]))
    uploader = RunUploader(StoreAddress.of(root), other)
    again = uploader.ingest(read_tracked_run(copy.journal), job=copy.folder, out=copy.details)
    assert again.run_id == link.run_id
    assert history(root, link.run_id, "pretrain/loss") == [(1, 1.0), (2, 2.0), (3, 3.0)]


def test_a_result_whose_sender_was_killed_before_it_was_ranked_is_ranked_the_next_time(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest(root, write_attempt(root))
    probe = write_attempt(root, scored(FINGERPRINT, 40.0), stage="linprobe", fingerprint="aa" * 16)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(EncoderModels, "_rate", die)
        with pytest.raises(KeyboardInterrupt):
            ingest(root, probe)
    ingest(root, probe)
    best = client(root).get_model_version_by_alias("asl-demo", "best")
    assert best.tags["lp_acc1"] == "40.0"


def test_an_encoder_made_anew_under_its_fingerprint_leaves_no_result_of_the_old_one(
    root: Path,
) -> None:
    old = ingest(root, write_attempt(root, losses(1, 2)))

    def second(journal: Journal) -> None:
        journal.resume(0, 2)
        for step in (1, 2):
            journal.metrics(step, {"pretrain/loss": 0.25})

    new = ingest(root, write_attempt(root, second))
    assert new.run_id != old.run_id
    assert new.parent_run_id != old.parent_run_id
    (model,) = client(root).search_logged_models([new.experiment_id])
    assert model.source_run_id == new.run_id
    assert [(m.key, m.value) for m in model.metrics or ()] == [("pretrain/loss", 0.25)]
    (version,) = client(root).search_model_versions("name = 'asl-demo'")
    assert version.run_id == new.run_id
    assert new.parent_run_id is not None
    points = client(root).get_metric_history(new.parent_run_id, "pretrain/loss")
    assert [point.value for point in points] == [0.25, 0.25]


def test_a_run_that_the_store_cannot_take_holds_up_no_other(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    long = "x" * 300  # a key that MLflow refuses
    write_attempt(root, lambda journal: journal.metrics(1, {long: 1.0}), fingerprint="a" * 32)
    write_attempt(root, losses(1), fingerprint="b" * 32, key="mae")
    assert sync_journals(root, MlflowStore(root)) == 1
    assert run_link(root, "b" * 32) is not None
    assert "aaaaaaaaaaaa: skipped" in caplog.text


def test_a_store_without_models_shows_runs_all_the_same(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise MlflowException("no such endpoint")

    monkeypatch.setattr(MlflowClient, "search_logged_models", refuse)
    link = ingest(root, write_attempt(root, losses(1)))
    assert (link.complete, link.credited) == (True, False)
    assert "pretrain@asl: not among MLflow's models: no such endpoint" in caplog.text
