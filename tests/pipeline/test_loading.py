"""Code that cannot be imported, and files that hide a library, are one line."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import loading
from pipeline.errors import UserError
from pipeline.loading import import_failure
from pipeline.project import find_project

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project that can be started in its own folder."""
    folder = tmp_path_factory.mktemp("project")
    for package in ("asl_core", "pipeline"):
        shutil.copytree(
            ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("params.yaml", "cluster.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, folder)
    (folder / ".dvc").mkdir()
    return folder


def start(project: Path, *arguments: str, **environment: str) -> tuple[int, list[str]]:
    done = subprocess.run(
        [sys.executable, *arguments, "validate"], cwd=project, capture_output=True, text=True,
        check=False, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **environment},
    )  # fmt: skip
    return done.returncode, done.stderr.splitlines()


@pytest.mark.parametrize(
    ("file", "line", "said"),
    [
        ("asl_core/recipes/asl.py", "x = (", "'(' was never closed"),
        ("asl_core/recipes/imported.py", "x = nothing", "NameError: name 'nothing' is not defined"),
        ("asl_core/recipes/mae.py", "x: list[int] = field(1, 2)", "NameError"),
        ("asl_core/errors.py", " x = 1", "unindent does not match"),
        ("pipeline/stages/table.py", "from pipeline.errors import nothing", "ImportError"),
        ("pipeline/commands/plan.py", "x = 1 +", "invalid syntax"),
    ],
)
def test_code_that_cannot_be_imported_is_one_line(
    project: Path, file: str, line: str, said: str
) -> None:
    path = project / file
    before = path.read_text()
    path.write_text(f"{before}\n{line}\n")
    try:
        code, printed = start(project, "-m", "pipeline")
    finally:
        path.write_text(before)
    assert code == 2
    (only,) = printed
    number = before.count("\n") + 2
    assert only.startswith(f"asl-pipe: {path}:{number}: ")
    assert said in only
    assert only.endswith("; correct the file")


def test_a_package_that_is_not_installed_is_asked_for(project: Path) -> None:
    path = project / "pipeline/commands/tables.py"
    before = path.read_text()
    path.write_text(f"import nowhere_to_be_found\n{before}")
    try:
        code, printed = start(project, "-m", "pipeline")
    finally:
        path.write_text(before)
    said = "No module named 'nowhere_to_be_found': the environment is incomplete; `make repro` "
    assert (code, printed) == (2, [f"asl-pipe: {said}completes it"])


@pytest.mark.parametrize("name", ["yaml", "json", "torch", "random", "typing", "typer", "numpy"])
def test_a_file_that_hides_a_library_is_named(project: Path, name: str) -> None:
    path = project / f"{name}.py"
    path.write_text("raise RuntimeError('not the library')\n")
    try:
        found = [
            start(project, "-m", "pipeline"),
            start(project, "-P", "-m", "pipeline", PYTHONPATH=str(project)),
        ]
    finally:
        path.unlink()
    assert found == [(2, [f"asl-pipe: {path} hides the library {name}; rename it"])] * 2


def test_files_of_other_names_hide_nothing(project: Path) -> None:
    (project / "torch").mkdir()  # without __init__.py the installed one comes first
    (project / "notes.py").write_text("raise RuntimeError\n")
    assert start(project, "-m", "pipeline") == (0, [])
    (project / "torch").rmdir()
    (project / "notes.py").unlink()


def test_an_error_of_code_that_runs_is_no_failure_to_import(
    tmp_path: Path,
) -> None:
    with pytest.raises(UserError) as caught:
        find_project(tmp_path)
    assert import_failure(caught.value) is None
    assert import_failure(SyntaxError("no", ("elsewhere.py", 1, 1, ""))) is None


def test_libraries_beside_an_installed_program_hide_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where an environment sees another one's libraries too, both have numpy."""
    (tmp_path / "numpy").mkdir()
    (tmp_path / "numpy/__init__.py").touch()
    monkeypatch.setattr(loading, "HERE", str(tmp_path))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert loading.hiding_file() == f"{tmp_path}/numpy hides the library numpy; rename it"
    (tmp_path / "asl_pipe-0.1.0.dist-info").mkdir()
    assert loading.hiding_file() is None
