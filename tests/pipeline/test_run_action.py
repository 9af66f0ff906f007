"""A stage run from params.yaml to outputs, metrics and journal, with stages made for the test."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asl_core.engine.journal import Journal
from asl_core.errors import InputError, InterruptedRun, TrainingError
from asl_core.recipes.optimisation import Resources
from pipeline import stages
from pipeline.config.cluster import STAGES
from pipeline.errors import NotFinishedError, TrackingError, UserError
from pipeline.execution.compute import set_threads
from pipeline.execution.gpus import Gpus
from pipeline.execution.publish import publish
from pipeline.execution.run import RunServices, run_stage
from pipeline.execution.stop_signals import Terminated
from pipeline.jobs.folder import JobFolder
from pipeline.jobs.journal import read_records, read_run_name
from pipeline.jobs.liveness import has_succeeded
from pipeline.project import Project, data_root, find_project
from pipeline.results.documents import Hashes
from pipeline.results.git import Git
from pipeline.results.port import Identity
from pipeline.stages.request import StageRequest
from pipeline.tracking.tracked import read_tracked_run

PARAMS = """
suite: tiny
title: Tiny
scale: reduced
tables: [table7]
datasets: {icons: {source: icons, train: 8, test: 4}}
experiments: {asl: {method: asl, dataset: icons, model: vit-demo, epochs: 2, warmup_epochs: 1}}
linprobe: {asl: {dataset: icons, epochs: 12}}
finetune: {}
detect: {}
segment: {}
analyze: {}
"""


class FakeCache:
    """Gives fingerprints in turn, the last one for ever."""

    def __init__(self, *fingerprints: str) -> None:
        self.fingerprints = list(fingerprints) or ["f" * 64]
        self.kept: set[str] = set()

    def find(self, root: Path, fingerprint: str) -> Hashes | None:
        return {} if fingerprint in self.kept else None

    def identify(self, suite: Path, name: str) -> Identity:
        first = self.fingerprints[0]
        if len(self.fingerprints) > 1:
            self.fingerprints.pop(0)
        return Identity(first, {"data/icons": "0123456789abcdef0123456789abcdef.dir"}, code="")


class FakeTracker:
    """Remembers what was ingested; may be out of order."""

    def __init__(self, broken: bool = False) -> None:
        self.broken, self.seen, self.followed = broken, [], []

    def follow(self, journal: Path, out: Path) -> None:
        if self.broken:
            raise TrackingError("refused")
        self.followed.append(read_tracked_run(journal).status)

    def ingest(self, journal: Path, out: Path) -> None:
        if self.broken:
            raise TrackingError("refused")
        self.seen.append((journal, out))


class FakeCode:
    """Always the same commit."""

    def tags(self, root: Path) -> dict[str, str]:
        return {"git.commit": "c0ffee", "git.dirty": "false"}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    root = tmp_path / "project"
    for folder in (".dvc", "data/icons", "runs/encoder/asl"):
        (root / folder).mkdir(parents=True)
    (root / "params.yaml").write_text(PARAMS)
    (root / "data/icons/manifest.json").write_text(json.dumps({"digests": {"train": "d1"}}))
    return find_project(root)


def succeed(request: StageRequest) -> dict[str, float]:
    (request.work / "ckpt").mkdir(exist_ok=True)
    (request.work / "ckpt/step-8").write_text("state")
    (request.outputs.get("encoder", request.out) / "encoder.safetensors").write_text("weights")
    request.journal.metrics(8, {"pretrain/loss": 0.5})
    return {"pretrain/loss": 0.5, "encoder_parameters_m": 0.25}


def services(stage: Callable[[StageRequest], dict[str, float]] = succeed, **changes) -> RunServices:
    return RunServices(
        **{"cache": FakeCache(), "code": FakeCode(), "load": lambda _: stage, **changes}
    )


def job_of(project: Project) -> JobFolder:
    return JobFolder.of(project.scratch, "f" * 64)


def kinds(journal: Path, kind: str) -> list:
    return [record.body for record in read_records(journal) if record.kind == kind]


def test_checkpoints_stay_until_dvc_has_the_result(project: Project) -> None:
    cache = FakeCache()
    run_stage(project, "pretrain", "asl", services(cache=cache))
    job = job_of(project)
    assert job.checkpoints.is_dir()
    # DVC could not file it, a disk was full: the next one goes on from there
    run_stage(project, "pretrain", "asl", services(cache=cache))
    assert job.checkpoints.is_dir()
    cache.fingerprints, cache.kept = ["e" * 64], {"f" * 64}
    run_stage(project, "pretrain", "asl", services(cache=cache))
    assert not job.checkpoints.exists()
    assert JobFolder.of(project.scratch, "e" * 64).checkpoints.is_dir()


def test_a_finished_run_leaves_outputs_metrics_and_journal(
    project: Project,
) -> None:
    tracker = FakeTracker()
    outcome = run_stage(project, "pretrain", "asl", services(presenter=tracker))
    out = project.root / "runs/pretrain/asl"
    assert (project.root / "runs/encoder/asl/encoder.safetensors").read_text() == "weights"
    assert json.loads((out / "config.json").read_text())["method"] == "asl"
    metrics = json.loads((project.root / "runs/pretrain/asl.json").read_text())
    assert metrics == {
        "fingerprint": "f" * 64, "scale": "reduced", "code": "",
        "pretrain/loss": 0.5, "encoder_parameters_m": 0.25,
    }  # fmt: skip
    assert json.loads((out / "metrics.json").read_text()) == metrics  # travels with the cache
    job = job_of(project)
    assert not job.out.exists()
    name = read_run_name(job.journal)
    assert name is not None
    assert (name.stage, name.key, name.suite) == ("pretrain", "asl", "tiny")
    assert name.fingerprint == job.fingerprint
    assert has_succeeded(job.journal)
    assert outcome.metrics == {"pretrain/loss": 0.5, "encoder_parameters_m": 0.25}
    assert tracker.followed == ["RUNNING"]
    assert tracker.seen == [(job.journal, out)]
    tags = {k: v for body in kinds(out / "journal", "tags") for k, v in body["values"].items()}
    assert tags["git.commit"] == "c0ffee"
    assert tags["dvc.input.data/icons"] == "0123456789abcdef0123456789abcdef.dir"
    assert tags["gpu.model"] == "none"
    assert (tags["table"], tags["row"]) == ("table7", "ASL (AEE)")
    assert (tags["stage"], tags["key"], tags["suite"]) == ("pretrain", "asl", "tiny")
    assert tags["fingerprint"] == "f" * 64
    (dataset,) = kinds(out / "journal", "dataset")
    assert (dataset["name"], dataset["digest"]) == ("icons", "d1")
    (params,) = kinds(out / "journal", "params")
    assert params["values"]["epochs"] == 2
    assert len(params["values"]) <= 25
    values = {k: v for b in kinds(out / "journal", "metrics") for k, v in b["values"].items()}
    assert values["encoder_parameters_m"] == 0.25
    losses = [b for b in kinds(out / "journal", "metrics") if "pretrain/loss" in b["values"]]
    assert [body["step"] for body in losses] == [8]  # the end of the curve is the result
    assert any(name.startswith("system/") for name in values)
    assert kinds(out / "journal", "end")[-1]["status"] == "SUCCEEDED"
    named = [body["path"] for body in kinds(out / "journal", "artifact")]
    assert named == ["config.json", "encoder.safetensors"]


def test_a_metric_that_cannot_be_had_is_null_and_no_point_of_the_journal(project: Project) -> None:
    def measure(request: StageRequest) -> dict[str, float]:
        return {"cka_positions": float("nan"), "token_similarity": 0.5}

    outcome = run_stage(project, "linprobe", "asl", services(measure))
    assert outcome.metrics == {"cka_positions": None, "token_similarity": 0.5}
    runs = project.root / "runs/linprobe"
    for file in (runs / "asl.json", runs / "asl/metrics.json"):
        content = json.loads(file.read_text(), parse_constant=pytest.fail)
        assert content["cka_positions"] is None
        assert content["token_similarity"] == 0.5
    points = [body["values"] for body in kinds(runs / "asl/journal", "metrics")]
    assert {"token_similarity": 0.5} in points
    assert not any("cka_positions" in values for values in points)


def test_a_stage_is_given_its_recipe_its_inputs_and_an_empty_folder(project: Project) -> None:
    seen: list[StageRequest] = []

    def look(request: StageRequest) -> dict[str, float]:
        seen.append(request)
        assert not list(request.out.iterdir())
        return {}

    run_stage(project, "linprobe", "asl", services(look))
    (request,) = seen
    assert request.recipe.epochs == 12
    assert request.inputs == {
        "dataset": project.root / "data/icons",
        "encoder": project.root / "runs/encoder/asl",
    }
    assert request.work == job_of(project).folder


def test_what_other_stages_read_and_the_report_hold_no_journal(project: Project) -> None:
    run_stage(project, "prepare", "icons", services())
    run_stage(project, "report", "suite", services(cache=FakeCache("e" * 64)))
    run_stage(project, "pretrain", "asl", services(cache=FakeCache("d" * 64)))
    for folder in ("data/icons", "reports", "runs/encoder/asl", "runs/held_out/asl"):
        assert (project.root / folder).is_dir()
        assert not (project.root / folder / "journal").exists()
    for folder in ("runs/prepare/icons", "runs/pretrain/asl"):
        assert (project.root / folder / "journal").is_dir()
    assert not (project.root / "runs/prepare/icons.json").exists()


def test_a_second_attempt_finds_the_checkpoints_and_goes_on(project: Project) -> None:
    def fail(request: StageRequest) -> dict[str, float]:
        (request.work / "ckpt").mkdir()
        (request.work / "ckpt/step-4").write_text("state")
        (request.out / "half").write_text("half")
        raise TrainingError("the loss is nan")

    tracker = FakeTracker()
    with pytest.raises(TrainingError):
        run_stage(project, "pretrain", "asl", services(fail, presenter=tracker))
    job = job_of(project)
    assert kinds(job.journal, "end")[-1]["status"] == "FAILED"
    assert tracker.seen == [(job.journal, job.details)]

    def go_on(request: StageRequest) -> dict[str, float]:
        assert (request.work / "ckpt/step-4").is_file()
        assert not (request.out / "half").exists()
        return {}

    run_stage(project, "pretrain", "asl", services(go_on))
    attempts = sorted(path.name for path in (project.root / "runs/pretrain/asl/journal").iterdir())
    assert attempts == ["attempt-000.jsonl", "attempt-001.jsonl"]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InterruptedRun("stopped by SIGTERM"), "INTERRUPTED"),
        (KeyboardInterrupt(), "INTERRUPTED"),
        (Terminated(), "INTERRUPTED"),
        (InputError("wrong"), "FAILED"),
        (OSError(errno.ENOSPC, "No space left on device"), "FAILED"),
        (ZeroDivisionError("a bug"), "FAILED"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_attempt_that_fails_says_so_and_touches_no_output(
    project: Project, error: BaseException, status: str
) -> None:
    kept = project.root / "runs/encoder/asl/encoder.safetensors"
    kept.write_text("older")

    def fail(request: StageRequest) -> dict[str, float]:
        raise error

    with pytest.raises(type(error)):
        run_stage(project, "pretrain", "asl", services(fail))
    job = job_of(project)
    assert kinds(job.journal, "end")[-1]["status"] == status
    assert kept.read_text() == "older"
    assert job.log.exists() == (type(error) in (ZeroDivisionError, OSError))


def test_sigterm_interrupts_a_run(project: Project) -> None:
    def wait(request: StageRequest) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(5)
        return {}

    with pytest.raises(Terminated):
        run_stage(project, "pretrain", "asl", services(wait))
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert kinds(job_of(project).journal, "end")[-1]["status"] == "INTERRUPTED"


def test_a_result_whose_inputs_changed_meanwhile_is_not_published(project: Project) -> None:
    cache = FakeCache("f" * 64, "a" * 64)
    with pytest.raises(NotFinishedError, match="changed while it ran"):
        run_stage(project, "pretrain", "asl", services(cache=cache))
    assert not (project.root / "runs/pretrain/asl.json").exists()


HOLD = """
import os, signal, sys, time
from pathlib import Path
from pipeline.execution.perform import _exclusive
from pipeline.jobs.folder import JobFolder

with _exclusive(JobFolder(Path(sys.argv[1])), "pretrain@asl"):
    worker = os.fork()
    if worker == 0:
        time.sleep(60)
    print(worker, flush=True)
    time.sleep(60)
"""
"""Runs the job in the folder for a minute, with a loader worker."""


def test_two_processes_never_share_the_scratch_folder_and_a_kill_frees_it(
    project: Project,
) -> None:
    job = JobFolder.of(project.scratch, "f" * 64)
    job.folder.mkdir(parents=True)
    command = [sys.executable, "-c", HOLD, str(job.folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        worker = int(holder.stdout.readline())
        try:
            with pytest.raises(NotFinishedError, match="another process"):
                run_stage(project, "pretrain", "asl", services())
            holder.kill()
            holder.wait()
            os.kill(worker, 0)  # an orphan for now; it must not stand in the way
            run_stage(project, "pretrain", "asl", services())
        finally:
            holder.kill()
            os.kill(worker, signal.SIGKILL)


def test_a_tracking_store_that_is_down_is_one_warning(
    project: Project, caplog: pytest.LogCaptureFixture
) -> None:
    run_stage(project, "pretrain", "asl", services(presenter=FakeTracker(broken=True)))
    (message,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert "asl-pipe sync" in message


@pytest.mark.parametrize(
    ("stage", "key", "said"),
    [
        ("pretrian", "asl", "unknown stage 'pretrian'; did you mean 'pretrain'"),
        ("pretrain", "alsl", "did you mean 'asl'"),
        ("detect", "asl", "valid: none"),
        ("prepare", "icon", "did you mean 'icons'"),
    ],
)
def test_unknown_names_list_the_valid_ones(
    project: Project, stage: str, key: str, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        run_stage(project, stage, key, services())


def test_a_missing_input_names_the_command_that_makes_it(project: Project) -> None:
    (project.root / "runs/encoder/asl").rmdir()
    with pytest.raises(UserError, match="run `dvc repro pretrain@asl`"):
        run_stage(project, "linprobe", "asl", services())


def test_relative_data_paths_start_at_asl_data_or_beside_the_project(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert data_root(project) == project.root.parent / "shared/data"
    monkeypatch.setenv("ASL_DATA", "/data")
    assert data_root(project) == Path("/data")


@pytest.mark.parametrize(
    ("resources", "gpus", "expected"),
    [
        (Resources(threads=3), (), 3),
        (Resources(), (), 1),
        (Resources(device="cpu"), ("GPU-1",), 1),
        (Resources(), ("GPU-1",), len(os.sched_getaffinity(0))),
        (Resources(device="cuda", num_workers=10_000), ("GPU-1",), 1),
    ],
)
def test_threads_depend_neither_on_the_shell_nor_on_cores_where_they_round(
    monkeypatch: pytest.MonkeyPatch, resources: Resources, gpus: tuple[str, ...], expected: int
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    monkeypatch.setenv("MKL_NUM_THREADS", "7")
    set_threads(resources, Gpus(gpus))
    assert os.environ["OMP_NUM_THREADS"] == os.environ["MKL_NUM_THREADS"] == str(expected)
    assert os.environ["GOMP_SPINCOUNT"] == "3000"


def test_what_rounding_depends_on_is_recorded(stub_project: Path, call: Any) -> None:
    """By a stage that loads torch; the shell's number of threads is not the one that is used."""
    root = Path(__file__).parents[2]
    shutil.copy(root / "pipeline/stages/prepare.py", stub_project / "pipeline/stages/prepare.py")
    done = call(
        "asl-pipe", "run", "prepare", "icons", cwd=stub_project, OMP_NUM_THREADS="2",
        PYTHONPATH=str(stub_project),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    records = read_records(stub_project / "runs/prepare/icons/journal")
    tags = {
        name: value for r in records if r.kind == "tags" for name, value in r.body["values"].items()
    }
    assert (tags["device"], tags["threads"]) == ("cpu", "1")
    assert tags["kernels"]


def test_publishing_replaces_a_folder_whole(tmp_path: Path) -> None:
    made, target = tmp_path / "made", tmp_path / "runs/x"
    made.mkdir()
    (made / "new").write_text("new")
    target.mkdir(parents=True)
    (target / "old").write_text("old")
    publish(made, target)
    assert [path.name for path in target.iterdir()] == ["new"]
    assert [path.name for path in target.parent.iterdir()] == ["x"]


def test_publishing_copies_where_a_rename_crosses_file_systems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, target = tmp_path / "made", tmp_path / "runs/x"
    made.mkdir()
    (made / "new").write_text("new")
    rename = os.rename

    def refuse(source: Path, to: Path) -> None:
        if Path(source) == made:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        rename(source, to)

    monkeypatch.setattr(os, "rename", refuse)
    publish(made, target)
    assert (target / "new").read_text() == "new"
    assert not made.exists()


def test_git_tags_name_the_commit_and_what_differs_from_it(dvc_project: Path, call) -> None:
    assert Git().tags(dvc_project)["git.commit"] == "none"
    (dvc_project / "code.py").write_text("x = 1\n")
    call("git", "add", "-A", cwd=dvc_project)
    call("git", "commit", "-qm", "first", cwd=dvc_project)
    clean = Git().tags(dvc_project)
    assert clean["git.dirty"] == "false"
    assert len(clean["git.commit"]) == 40
    (dvc_project / "dvc.lock").write_text("made by the pipeline itself")
    assert Git().tags(dvc_project) == clean
    (dvc_project / "code.py").write_text("x = 2\n")
    first = Git().tags(dvc_project)
    (dvc_project / "code.py").write_text("x = 3\n")
    assert first["git.dirty"] == "true"
    assert first["git.patch"] != Git().tags(dvc_project)["git.patch"]


def test_every_stage_of_the_dag_has_a_module_with_a_run_function() -> None:
    for stage in STAGES:
        text = (Path(stages.__path__[0]) / f"{stage}.py").read_text()
        assert "def run(request: StageRequest[" in text


def test_a_helping_process_computes_but_neither_records_nor_publishes(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    tracker = FakeTracker()
    requests: list[StageRequest] = []

    def stage(request: StageRequest) -> dict[str, float]:
        requests.append(request)
        return succeed(request)

    run_stage(project, "pretrain", "asl", services(stage, presenter=tracker))
    assert requests[0].work == job_of(project).folder  # the checkpoints that all resume from
    assert requests[0].out != job_of(project).out
    assert not (project.suite / "runs/encoder/asl/encoder.safetensors").exists()
    assert not (project.suite / "runs/pretrain/asl.json").exists()
    assert tracker.seen == []


@pytest.mark.parametrize("local_rank", [0, 1])
def test_the_first_process_on_another_machine_samples_it(
    project: Project, monkeypatch: pytest.MonkeyPatch, local_rank: int
) -> None:
    began_ms = int(time.time() * 1000) - 100_000
    with Journal.open(job_of(project).journal) as journal:
        journal.tags({"stage": "pretrain", "key": "asl", "suite": "tiny", "fingerprint": "f"})
    path = job_of(project).journal / "attempt-000.jsonl"
    lines = [{**json.loads(line), "t": began_ms} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name, value in (
        ("RANK", "8"),
        ("WORLD_SIZE", "9"),
        ("LOCAL_RANK", str(local_rank)),
        ("ASL_NODE", "n2"),
    ):
        monkeypatch.setenv(name, value)
    run_stage(project, "pretrain", "asl", services())
    points = read_tracked_run(job_of(project).journal).points()
    samples = [step for key, step, *_ in points if key == "system/n2/disk_usage_percentage"]
    assert len(samples) == (1 if local_rank == 0 else 0)
    assert all(step >= 100 for step in samples)  # seconds since the run began, not this process


def test_scratch_that_is_deleted_before_a_checkpoint_is_made_again(
    project: Project, caplog: pytest.LogCaptureFixture
) -> None:
    def stage(request: StageRequest) -> dict[str, float]:
        request.journal.metrics(1, {"pretrain/loss": 0.75})
        shutil.rmtree(project.scratch)
        request.journal.metrics(2, {"pretrain/loss": 0.5})
        request.before_checkpoint()
        return succeed(request)

    run_stage(project, "pretrain", "asl", services(stage))
    assert "was deleted while it ran; its weights and its journal are kept" in caplog.text
    assert (project.suite / "runs/encoder/asl/encoder.safetensors").read_text() == "weights"
    told = project.suite / "runs/pretrain/asl/journal"
    values = [record["values"]["pretrain/loss"] for record in kinds(told, "metrics")[:3]]
    assert values == [0.75, 0.5, 0.5]
    assert has_succeeded(told)


@pytest.mark.parametrize("written", [False, True], ids=["while it works", "when it is done"])
def test_outputs_that_are_deleted_are_said_in_one_line_and_nothing_is_published(
    project: Project, written: bool
) -> None:
    def stage(request: StageRequest) -> dict[str, float]:
        metrics = succeed(request)
        shutil.rmtree(project.scratch)
        return metrics if written else succeed(request)

    with pytest.raises(NotFinishedError, match=r"pretrain@asl: .* was deleted while it ran; run"):
        run_stage(project, "pretrain", "asl", services(stage))
    assert not (project.suite / "runs/pretrain/asl").exists()
    assert not has_succeeded(job_of(project).journal)
    run_stage(project, "pretrain", "asl", services())
    assert (project.suite / "runs/encoder/asl/encoder.safetensors").is_file()
