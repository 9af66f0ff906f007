"""`make` makes its environment whole, or leaves none; its programs find each other."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

NEW = f"""#!/bin/sh
case "$*" in
*" venv "*) mkdir -p "$4/bin" && rm -f "$4/.installed" && cp "$0" "$4/bin/python" ;;
*"pip install"*) echo "$@" >> pip.log; test ! -e offline ;;
*"pip --version"*) test ! -e "$(dirname "$0")/no-pip" ;;
*purelib*) echo packages ;;
*) exec {sys.executable} "$@" ;;
esac
"""
OLD = "#!/bin/sh\nexit 1\n"
WITHOUT_VENV = f"""#!/bin/sh
case "$*" in
*" venv "*) mkdir -p "$4/bin"; printf 'no ensurepip\\nFailing command: python\\n'; exit 1 ;;
*) exec {sys.executable} "$@" ;;
esac
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project whose Pythons are scripts that stand for them."""
    root = tmp_path / "project"
    for folder in (".ci", "packages", "programs"):
        (root / folder).mkdir(parents=True)
    shutil.copy(ROOT / ".ci/environment", root / ".ci")
    shutil.copy(ROOT / "Makefile", root)
    for name in ("requirements.lock", "pyproject.toml"):
        (root / name).touch()
    for name, text in (("new", NEW), ("old", OLD), ("without-venv", WITHOUT_VENV)):
        (root / "programs" / name).write_text(text)
        (root / "programs" / name).chmod(0o755)
    return root


def make(root: Path, *pythons: str) -> tuple[int, str]:
    names = " ".join(str(root / "programs" / name) for name in pythons)
    done = subprocess.run(
        ["make", "-s", ".venv/.installed", f"PYTHON={names}"], cwd=root, text=True, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={key: value for key, value in os.environ.items() if not key.startswith("MAKE")},
    )  # fmt: skip
    return done.returncode, "\n".join(
        line for line in done.stdout.splitlines() if not line.startswith("make: ***")
    )


def installs(root: Path) -> int:
    log = root / "pip.log"
    return len(log.read_text().splitlines()) if log.exists() else 0


def test_an_older_python_is_one_line_and_leaves_nothing(project: Path) -> None:
    code, said = make(project, "old", "nowhere")
    assert code == 2
    assert said.endswith(
        "is Python 3.11 or later; install one, or name it: make PYTHON=/path/to/python"
    )
    assert len(said.splitlines()) == 1
    assert not (project / ".venv").exists()


def test_of_several_pythons_the_first_that_is_new_enough_is_taken(project: Path) -> None:
    assert make(project, "nowhere", "old", "new")[0] == 0
    assert (project / ".venv/.installed").read_text().strip() == str(project)
    assert make(project, "old") == (0, "")  # nothing is left to do
    assert installs(project) == 2


def test_a_python_that_cannot_make_environments_is_one_line_and_leaves_nothing(
    project: Path,
) -> None:
    code, said = make(project, "without-venv")
    assert code == 2
    assert "(Failing command: python); on Debian and Ubuntu install python3-venv" in said
    assert len(said.splitlines()) == 1
    assert not (project / ".venv").exists()


def test_an_installation_that_fails_is_gone_on_with(project: Path) -> None:
    (project / "offline").touch()
    code, said = make(project, "new")
    assert (code, said) == (2, "make: .venv is not complete; run the same command again to go on")
    assert not (project / ".venv/.installed").exists()
    (project / "offline").unlink()
    assert make(project, "old")[0] == 0  # the Python of the environment does


@pytest.mark.parametrize("damage", ["an old Python", "no pip", "half a venv"])
def test_an_environment_that_is_not_sound_is_made_anew(project: Path, damage: str) -> None:
    folder = project / ".venv/bin"
    folder.mkdir(parents=True)
    if damage != "half a venv":
        (folder / "python").write_text(OLD if damage == "an old Python" else NEW)
        (folder / "python").chmod(0o755)
        (folder / "no-pip").touch()
    assert make(project, "old")[0] == 2
    (folder / "no-pip").unlink(missing_ok=True)
    assert make(project, "new")[0] == 0
    assert (folder / "python").read_text() == NEW


def test_a_copied_project_gets_an_environment_of_its_own(project: Path, tmp_path: Path) -> None:
    """The one that was copied along starts the code of the original."""
    make(project, "new")
    copy = tmp_path / "copy"
    shutil.copytree(project, copy)
    before = installs(copy)
    assert make(copy, "new")[0] == 0
    assert (copy / ".venv/.installed").read_text().strip() == str(copy)
    assert installs(copy) == before + 2


def test_a_changed_lock_file_installs_again(project: Path) -> None:
    make(project, "new")
    later = (project / ".venv/.installed").stat().st_mtime + 5
    os.utime(project / "requirements.lock", (later, later))
    assert make(project, "new")[0] == 0
    assert installs(project) == 4


def test_programs_of_the_environment_find_each_other_without_activation(
    project: Path, tmp_path: Path
) -> None:
    make(project, "new")
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    (packages,) = venv.glob("lib/python3*/site-packages")
    shutil.copy(project / "packages/asl_pipe_programs.pth", packages)
    shown = [str(venv / "bin/python"), "-c", "import os; print(os.environ['PATH'])"]
    for path in ("/usr/bin", f"/opt:{venv}/bin:/usr/bin"):
        said = subprocess.run(shown, capture_output=True, text=True, check=True, env={"PATH": path})
        expected = path if str(venv) in path else f"{venv}/bin:{path}"
        assert said.stdout.strip() == expected
