"""What DVC runs for an experiment in a folder that it deletes is shown by the project it is of."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from scmrepo.git import Git

from pipeline.errors import UserError
from pipeline.execution.publish import publish
from pipeline.project import data_root, find_project
from pipeline.results.closure import PACKAGES
from pipeline.results.dvc_experiment import find_dvc_experiment
from pipeline.results.suite_project import wanted_links, write_suite_project
from pipeline.tracking.current import follow_locks
from pipeline.tracking.mlflow.store import MlflowStore
from pipeline.tracking.sync import sync_journals

ROOT = Path(__file__).parents[2]

# MLflow's tables use what SQLAlchemy 2.1 warns about.
pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")


def say(root: Path, *command: str, **environment: str) -> str:
    """Run a program to its end, and that of the processes which it leaves behind."""
    settings = {"PYTHONPATH": str(root), "DVC_SITE_CACHE_DIR": str(root.with_name("site"))}
    done = subprocess.run(
        command, cwd=root, env=os.environ | settings | environment, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def runs(root: Path) -> list[Run]:
    client = MlflowClient(tracking_uri=f"sqlite:///{root / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("asl/tiny")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id]))


def probes(root: Path) -> dict[str | None, Run]:
    """Return the linear probes by the name of DVC's experiment."""
    found = [run for run in runs(root) if run.data.tags["asl.stage"] == "linprobe"]
    return {run.data.tags.get("dvc.exp.name"): run for run in found}


def test_a_run_in_a_temporary_folder_reaches_the_store_although_that_was_off(
    stub_template: Path,
    copy_project: Callable[[Path, Path], Path],
    repro: Callable[..., None],
    tmp_path: Path,
) -> None:
    root = copy_project(stub_template, tmp_path / "project")
    dag = root / "dvc.yaml"  # without the report, which stubs cannot make and apply would miss
    dag.write_text(dag.read_text().partition("  report:")[0])
    repro(root, "linprobe@asl")
    say(root, "git", "add", "-A")
    say(root, "git", "commit", "-q", "-m", "results")
    off = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    said = say(
        root, "dvc", "exp", "run", "--temp", "-n", "tuned", "-S", "linprobe.asl.epochs=13",
        "linprobe@asl", **off,
    )  # fmt: skip
    assert "linprobe@asl is not in MLflow yet, run asl-pipe sync again" in said
    assert list(probes(root)) == [None]
    assert not list((root / ".dvc/tmp/exps/standalone").glob("tmp*"))  # DVC has deleted the folder

    sync_journals(root, MlflowStore(root))
    follow_locks(root)
    found = probes(root)
    tags = found["tuned"].data.tags
    head = say(root, "git", "rev-parse", "HEAD").strip()
    assert (tags["dvc.exp.baseline"], tags["dvc.exp.temporary"]) == (head, "true")
    assert found["tuned"].data.metrics["total"] == 19.0
    client = MlflowClient(tracking_uri=f"sqlite:///{root / 'mlflow.db'}")
    names = {each.path for each in client.list_artifacts(found["tuned"].info.run_id)}
    assert names >= {"config.json", "metrics.json", "weights.txt"}
    assert not list((root / ".asl/jobs").glob("*/out"))  # kept only until it was shown
    assert found[None].data.tags["asl.current"] == "true"
    assert tags["asl.current"] == "false"

    say(root, "dvc", "exp", "apply", "tuned")
    follow_locks(root, trusting=True)
    found = probes(root)
    assert found["tuned"].data.tags["asl.current"] == "true"
    assert found[None].data.tags["asl.current"] == "false"
    say(root, "git", "checkout", "-q", ".")
    follow_locks(root, trusting=True)
    assert probes(root)[None].data.tags["asl.current"] == "true"


def test_two_experiments_that_make_the_same_do_not_wait_for_each_other(
    stub_project: Path, tmp_path: Path
) -> None:
    origin = tmp_path / "origin"
    (origin / ".dvc").mkdir(parents=True)
    orders = {"STUB": json.dumps({"steps": 8, "step_s": 0.25})}
    of_experiment = {"DVC_EXP_NAME": "a", "DVC_ROOT": str(origin), "PYTHONPATH": str(stub_project)}
    off = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    say(stub_project, "dvc", "repro", "-q", "prepare@icons", **off)
    both = [
        subprocess.Popen(
            ["asl-pipe", "run", "pretrain", "asl"], cwd=stub_project,
            env=os.environ | orders | of_experiment | off, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    said = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert len(list((origin / ".asl/jobs").glob("*/journal/attempt-*.jsonl"))) == 1
    assert len(list((stub_project / ".asl/jobs").glob("*/journal/attempt-*.jsonl"))) == 2


def test_only_a_copy_has_an_origin(tmp_path: Path) -> None:
    for name in ("project", "project/suites/x", "project/.dvc/tmp/exps/t", "alone"):
        (tmp_path / name / ".dvc").mkdir(parents=True)
    (tmp_path / "project/suites/x/params.yaml").write_text("")
    (tmp_path / "project/.dvc/tmp/exps/t/suites/x/.dvc").mkdir(parents=True)
    project = find_project(tmp_path / "project", "demo")
    copy = find_project(tmp_path / "project/.dvc/tmp/exps/t", "demo")
    of = {"DVC_EXP_NAME": "a", "DVC_EXP_BASELINE_REV": "c0ffee"}
    for started in ("project", "project/suites/x"):
        here = of | {"DVC_ROOT": str(tmp_path / started)}
        found, own = find_dvc_experiment(copy, here), find_dvc_experiment(project, here)
        assert found is not None
        assert own is not None
        assert (found.origin, own.origin) == (tmp_path / "project", None)
        assert found.tags.items() > own.tags.items() >= {("dvc.exp.name", "a")}
    assert find_dvc_experiment(copy, {"DVC_ROOT": str(tmp_path / "project")}) is None
    assert find_dvc_experiment(copy, of | {"DVC_ROOT": str(tmp_path)}) is None


def test_data_is_looked_for_beside_the_project_and_not_beside_its_copy(tmp_path: Path) -> None:
    copy = tmp_path / "project/.dvc/tmp/exps/t"
    (copy / ".dvc").mkdir(parents=True)
    project = find_project(copy, "demo")
    moved = type(project)(project.root, project.suite, origin=tmp_path / "project")
    assert data_root(moved) == tmp_path / "shared/data"
    assert moved.scratch == tmp_path / "project/.asl"


def test_what_is_published_and_kept_is_there_twice(tmp_path: Path) -> None:
    made, target = tmp_path / "made", tmp_path / "runs/asl"
    for folder, text in ((made, "new"), (target, "old")):
        (folder / "pictures").mkdir(parents=True)
        (folder / "pictures/a.txt").write_text(text)
    publish(made, target, keep=True)
    for folder in (made, target):
        assert (folder / "pictures/a.txt").read_text() == "new"
    assert [path.name for path in target.parent.iterdir()] == ["asl"]


def test_an_experiment_of_a_suite_has_its_links_and_not_what_they_lead_to(tmp_path: Path) -> None:
    """DVC adds what a stage depends on to an experiment's commit, and follows links to folders."""
    (tmp_path / ".gitignore").write_bytes((ROOT / ".gitignore").read_bytes())
    for package in PACKAGES:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    suite = tmp_path / "suites/x"
    suite.mkdir(parents=True)
    for name, target in wanted_links(suite, tmp_path).items():
        (suite / name).symlink_to(target)
    for command in (["init", "-q"], ["add", "-A"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    before = subprocess.check_output(["git", "ls-files", "-s"], cwd=tmp_path)
    assert before.count(b"120000") == len(PACKAGES)
    with Git(str(tmp_path)) as git:
        git.add([str(suite / name) for name in PACKAGES])
    assert subprocess.check_output(["git", "ls-files", "-s"], cwd=tmp_path) == before
    (suite / "asl_core").unlink()
    (suite / "asl_core").mkdir()  # as experiments of earlier versions have left it
    with pytest.raises(UserError, match=r"asl_core is a folder, expected a link to \.\./\.\./asl"):
        write_suite_project(suite, tmp_path)
