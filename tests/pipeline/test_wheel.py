"""The wheel: all that a project of one's own needs, in an environment that has no checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from pipeline.project import suite_folders
from pipeline.results.code import read_code

ROOT = Path(__file__).parents[2]
BUILT_FROM = ("params.yaml", "pyproject.toml", "setup.py", "MANIFEST.in")
BUILD = """
import os, sys
from setuptools import build_meta
os.makedirs("sdist"); os.makedirs("wheel")
name = build_meta.build_sdist("sdist")
print(os.path.join("sdist", name))
"""


def python(*arguments: str, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, check=False,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a wheel, without a network, from the source distribution as `python -m build` does."""
    folder = tmp_path_factory.mktemp("build")
    for name in ("asl_core", "pipeline"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    written = [*ROOT.glob("suites/*/suite.yaml"), *ROOT.glob("suites/*/params.yaml")]
    for file in (*written, *(ROOT / name for name in BUILT_FROM)):
        target = folder / file.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
        if target.parent != folder and not (target.parent / "asl_core").is_symlink():
            (target.parent / "asl_core").symlink_to("../../asl_core")  # as suites have them
    archive = python("-c", BUILD, cwd=folder).splitlines()[-1]
    shutil.unpack_archive(folder / archive, folder / "unpacked")
    (source,) = (folder / "unpacked").iterdir()
    pip = ("-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-q", "-w")
    python(*pip, str(folder / "wheel"), ".", cwd=source)
    return next((folder / "wheel").glob("*.whl"))


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an environment with the wheel and, by a path, the libraries of this one."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    python("-m", "venv", "--without-pip", str(folder), cwd=wheel.parent)
    (packages,) = folder.glob("lib/python3*/site-packages")
    # a path and not this environment's own .pth files, which lead to the checkout
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = ("-m", "pip", "--python", str(folder / "bin/python"), "install", "--no-deps", "-q")
    python(*pip, "--no-index", "--no-compile", str(wheel), cwd=wheel.parent)
    for path in sorted(packages.rglob("*")):  # as where an administrator has installed it
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & ~0o222)
    return folder


Installed = Callable[..., str]


@pytest.fixture
def installed(environment: Path, tmp_path: Path) -> Installed:
    """Run a program of the environment."""

    def run(*command: str, cwd: Path = tmp_path, code: int = 0) -> str:
        path = os.pathsep.join([str(environment / "bin"), os.environ["PATH"]])
        dvc = [str(environment / "bin/python"), "-P", "-m", "dvc"]
        words = [*dvc, *command[1:]] if command[0] == "dvc" else [*command]
        done = subprocess.run(
            words, cwd=cwd, env=os.environ | {"PATH": path}, capture_output=True, text=True,
            check=False, timeout=300,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


def test_the_wheel_has_all_modules_their_files_and_the_suites_of_the_paper(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for path in read_code(wheel.parents[1]).files:
        assert path in names
    for name, folder in suite_folders(ROOT).items():
        file = "suite.yaml" if (folder / "suite.yaml").is_file() else "params.yaml"
        assert f"pipeline/suites/{name}/{file}" in names
    outside = {name for name in names if name.split("/")[0] not in ("asl_core", "pipeline")}
    assert {name.split("/")[0].partition("-")[0] for name in outside} == {"asl_pipe"}


@pytest.mark.slow
def test_a_project_of_ones_own_works_without_a_checkout(
    installed: Installed, environment: Path, wheel: Path, tmp_path: Path
) -> None:
    """From images to packed data and a suite of the paper, by the identity of installed code."""
    (packages,) = environment.glob("lib/python3*/site-packages")
    assert f"from {packages}" in installed("asl-pipe", "--version")
    images = tmp_path / "Bilder von Mäusen"
    for number in range(80):
        folder = images / ("a", "b")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (24, 24), (number, 3 * number, 90)).save(folder / f"{number}.png")
    project = tmp_path / "mein Projekt ü"
    said = installed("asl-pipe", "init", project.name, "--images", str(images), "--minutes", "20")
    assert "2 folders of 40 to 40 images are taken for classes: a, b" in said
    assert ": valid; 1 prepare" in installed("asl-pipe", "validate", cwd=project)
    said = installed("dvc", "repro", "prepare@images", "pretrain@untrained", cwd=project)
    assert "pretrain untrained: done" in said
    for path, text in read_code(wheel.parents[1]).identities.items():
        assert (project / path).read_text() == text, "the checkout and the wheel differ"
    shown = installed("asl-pipe", "tables", cwd=project)
    assert "Random initialisation" in shown
    assert "reduced" not in shown.lower()
    said = installed("asl-pipe", "bundle", "pretrain", "mae", "-o", "mae.pyz", cwd=project)
    with zipfile.ZipFile(project / "mae.pyz") as bundle:
        assert any(name.endswith("asl_core/methods/mae.py") for name in bundle.namelist())
    installed("asl-pipe", "new", "seeds", "--from", "table6-mini", cwd=project)
    assert "seeds: valid" in installed("asl-pipe", "validate", "seeds", cwd=project)
    # a project that was moved, and commands from a folder inside of it
    moved = project.rename(tmp_path / "moved")
    (moved / "notes").mkdir()
    assert "moved" in installed("dvc", "root", cwd=moved / "notes") + str(moved)
    said = installed("dvc", "repro", "pretrain@untrained", cwd=moved)
    assert "pretrain untrained: done" not in said
