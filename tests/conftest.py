"""What all tests share: a clean environment, and small projects to run commands in."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pipeline.results.suite_project import write_suite_project

if TYPE_CHECKING:
    from torch import Tensor

ROOT = Path(__file__).parent.parent
CLEANED = ("ASL_", "DVC_", "MLFLOW_", "SLURM_", "GIT_")

COPIED_SUITES = ("cifar10-mini", "coco-mini")

STUB = Path(__file__).with_name("stub_stages.py")
STUB_PARAMS = """
suite: tiny
title: Tiny
scale: reduced
tables: []
datasets: {icons: {source: icons, train: 8, test: 4}}
experiments:
  asl: {method: asl, dataset: icons, model: vit-demo, epochs: 2, warmup_epochs: 1}
linprobe:
  asl: {dataset: icons, epochs: 12}
finetune: {}
detect: {}
segment: {}
analyze: {}
"""

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ |= {"DO_NOT_TRACK": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}


def clean(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what a program may know of the caller's shell, this project's programs first."""
    kept = {
        name: value for name, value in environment.items()
        if not name.startswith(CLEANED) or name == "MLFLOW_DISABLE_TELEMETRY"
    }  # fmt: skip
    path = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    return kept | {"PATH": path}


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide what the caller's shell says to this project's tools."""
    cleaned = clean(os.environ)
    for name in os.environ.keys() - cleaned.keys():
        monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", cleaned["PATH"])


Call = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def call() -> Call:
    """Run a program and return what it said."""

    def run(*command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=cwd,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )

    return run


@pytest.fixture
def dvc_project(tmp_path: Path, call: Call) -> Path:
    """Return an empty project with git and DVC, its file-hash database inside."""
    project = tmp_path / "project"
    project.mkdir()
    for command in (
        ("git", "init", "-q"),
        ("git", "config", "user.email", "nobody@localhost"),
        ("git", "config", "user.name", "nobody"),
        ("dvc", "init", "-q"),
        ("dvc", "config", "core.analytics", "false"),
        ("dvc", "config", "core.site_cache_dir", str(tmp_path / "site")),
    ):
        done = call(*command, cwd=project)
        assert done.returncode == 0, done.stderr
    return project


@pytest.fixture
def copied_project(dvc_project: Path) -> Path:
    """Return a project with this one's DAG, params, two of its suites, and code."""
    for name in ("dvc.yaml", "params.yaml", "cluster.yaml", ".dvcignore", ".gitignore"):
        shutil.copy(ROOT / name, dvc_project / name)
    for name in ("asl_core", "pipeline"):
        compiled = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, dvc_project / name, ignore=compiled)
    for name in COPIED_SUITES:
        suite = Path("suites", name)
        (dvc_project / suite).mkdir(parents=True)
        shutil.copy(ROOT / suite / "params.yaml", dvc_project / suite / "params.yaml")
        write_suite_project(dvc_project / suite, dvc_project)
    return dvc_project


@pytest.fixture(scope="session")
def site_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a project once; a test gets a copy."""
    root = tmp_path_factory.mktemp("template") / "project"
    root.mkdir()
    for command in (
        ("git", "init", "-q"), ("git", "config", "user.email", "nobody@localhost"),
        ("git", "config", "user.name", "nobody"),
        (sys.executable, "-m", "dvc", "init", "-q"),
        (sys.executable, "-m", "dvc", "config", "core.analytics", "false"),
    ):  # fmt: skip
        subprocess.run(command, cwd=root, check=True)
    for name in ("dvc.yaml", "cluster.yaml", ".dvcignore", ".gitignore"):
        shutil.copy(ROOT / name, root / name)
    for name in ("asl_core", "pipeline"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    (root / "params.yaml").write_text(STUB_PARAMS)
    return root


@pytest.fixture(scope="session")
def stub_template(site_template: Path) -> Path:
    """Make a project once whose stages add numbers up instead of training."""
    root = site_template.with_name("stub")
    shutil.copytree(site_template, root)
    for stage in ("prepare", "pretrain", "linprobe"):
        shutil.copy(STUB, root / "pipeline/stages" / f"{stage}.py")
    return root


@pytest.fixture(scope="session")
def copy_project() -> Callable[[Path, Path], Path]:
    """Copy a project; DVC's database of file hashes is the copy's own."""

    def copy(template: Path, root: Path) -> Path:
        shutil.copytree(template, root)
        with (root / ".dvc/config").open("a") as file:
            file.write(f"    site_cache_dir = {root.with_name(f'{root.name}-site')}\n")
        return root

    return copy


@pytest.fixture
def stub_project(
    stub_template: Path, copy_project: Callable[[Path, Path], Path], tmp_path: Path
) -> Path:
    """Return a project whose stages add numbers up instead of training."""
    return copy_project(stub_template, tmp_path / "project")


@pytest.fixture(scope="session")
def repro() -> Callable[..., None]:
    """Run `dvc repro` in a project, for fixtures that outlive a test; nothing of it goes on."""

    def run(root: Path, *names: str) -> None:
        here = {"PYTHONPATH": str(root), "DVC_SITE_CACHE_DIR": str(root.with_name("site"))}
        command = ["dvc", "repro", "-q", *names]
        # whoever reads standard error waits for the processes that bring runs into MLflow too
        done = subprocess.run(
            command, cwd=root, env=clean(os.environ) | here, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr.decode()

    return run


ERRORS = pytest.StashKey[dict[str, float]]()


@pytest.fixture(scope="session")
def parity(pytestconfig: pytest.Config) -> "Callable[[str, Tensor, Tensor, float], None]":
    """Assert that two computations agree; the largest errors are printed when pytest ends."""
    errors = pytestconfig.stash.setdefault(ERRORS, {})

    def check(name: str, ours: "Tensor", theirs: "Tensor", most: float) -> None:
        assert ours.shape == theirs.shape, f"{name}: {ours.shape} and {theirs.shape}"
        error = (ours - theirs).abs().max().item()
        errors[name] = max(errors.get(name, 0.0), error)
        assert error <= most, f"{name}: differs by {error:.3g}"

    return check


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand a test process's errors to the one that prints."""
    output: dict[str, Any] | None = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["parity"] = session.config.stash.get(ERRORS, {})


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take them."""
    errors = node.config.stash.setdefault(ERRORS, {})
    for name, error in getattr(node, "workeroutput", {}).get("parity", {}).items():
        errors[name] = max(errors.get(name, 0.0), error)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    errors = terminalreporter.config.stash.get(ERRORS, {})
    if errors:
        terminalreporter.section("parity: largest absolute errors")
        for name, error in sorted(errors.items()):
            terminalreporter.write_line(f"{error:9.2e}  {name}")
