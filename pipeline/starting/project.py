"""A new project's folder: git, DVC and the files that people edit; all of it, or nothing."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import UserError
from pipeline.execution.output_place import refuse_file_in_the_way
from pipeline.project import SUITES, find_project
from pipeline.results.code import code_root
from pipeline.results.suite_project import write_suite_project
from pipeline.starting.texts import render
from pipeline.writing import write_bytes

_DVC_CONFIG = '[core]\n    analytics = false\n{scm}[cache]\n    type = "reflink,hardlink,copy"\n'
_NO_SCM = "    no_scm = True\n"
_KEPT = frozenset((".git",))


def refuse_place(folder: Path, images: tuple[Path, ...]) -> None:
    """Refuse a folder in which a project cannot be made.

    Args:
        folder: That is to become one; absolute.
        images: Folders of images.

    Raises:
        UserError: It is there and not empty, holds images, or belongs to another project.
    """
    refuse_file_in_the_way(folder)
    if folder.is_dir() and (there := sorted({*os.listdir(folder)} - _KEPT)):
        raise UserError(
            f"{folder} is not empty ({there[0]}{', ...' if len(there) > 1 else ''}); name a new "
            "folder, nothing is overwritten"
        )
    above = _nearest(folder)
    if not os.access(above, os.W_OK):
        raise UserError(f"{above} is not writable for your user; name a folder that is")
    for source in images:
        # realpath: of links in a circle Path.resolve raises
        if Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(source)):
            raise UserError(
                f"{folder} lies in the folder of images {source}; name a folder outside of it, "
                "or the project's own pictures become images"
            )
    if (code := code_root(above.resolve())) is not None:
        raise UserError(
            f"{folder} lies in {code}, which holds asl-pipe itself; name a folder outside of it, "
            "or make a suite there: asl-pipe new NAME"
        )
    if folder.parent.name == SUITES and (folder.parents[1] / ".dvc").is_dir():
        raise UserError(f"{folder} would be a suite of {folder.parents[1]}; asl-pipe new "
                        f"{folder.name} makes one there")  # fmt: skip


def make_project(folder: Path, files: Mapping[str, str]) -> list[str]:
    """Make the folder, with git and DVC; return a line for each thing that was done.

    Whatever fails, the folder is left as it was.

    Args:
        folder: It is not there, or empty but for `.git`; absolute.
        files: Name -> text: params.yaml, cluster.yaml, README.md.

    Raises:
        UserError: git or DVC refuses.
    """
    with _all_or_nothing(folder):
        done = [_set_up_git(folder)]
        has_git = done[0] is not None
        below = has_git and _git_top(folder) != folder.resolve()
        options = ["--subdir"] if below else [] if has_git else ["--no-scm"]
        _run([sys.executable, "-P", "-m", "dvc", "init", "--quiet", *options], folder)
        scm = "" if has_git else _NO_SCM
        write_bytes(folder / ".dvc/config", _DVC_CONFIG.format(scm=scm).encode())
        texts = {
            ".gitignore": render("gitignore.txt"), ".dvcignore": render("dvcignore.txt"), **files,
        }  # fmt: skip
        for name, text in texts.items():
            write_bytes(folder / name, text.encode())
        write_suite_project(folder, folder)
        find_project(folder)
    kind = "DVC without git, which is not installed" if not has_git else "DVC"
    return [*filter(None, done), f"{kind}: initialised" + (" in a subfolder" if below else "")]


@contextmanager
def _all_or_nothing(folder: Path) -> Iterator[None]:
    """Remove what was made in a folder if it does not become whole."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    before = set(os.listdir(folder)) if folder.is_dir() else set()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for name in set(os.listdir(folder)) - before:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        for path in made:
            path.rmdir()
        raise


def _nearest(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def _set_up_git(folder: Path) -> str | None:
    """Make a repository where there is none; None where git is not installed."""
    if shutil.which("git") is None:
        return None
    top = _git_top(folder)
    if top is not None:
        return f"git: the repository {top}"
    _run(["git", "init", "--quiet"], folder)
    return "git: a new repository"


def _git_top(folder: Path) -> Path | None:
    found = subprocess.run(
        ["git", "rev-parse", "--show-toplevel"], cwd=folder, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    return Path(found.stdout.rstrip("\n")).resolve() if found.returncode == 0 else None


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = " ".join((done.stderr or done.stdout).split()) or f"exit code {done.returncode}"
        name = "dvc init" if "dvc" in command else "git init"
        raise UserError(f"{name} in {folder}: {said[-500:]}; nothing was left there")
