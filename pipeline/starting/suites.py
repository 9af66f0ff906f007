"""A new suite in a project: from a template, or from a suite that is there or came along."""

import json
import os
import re
import shutil
from pathlib import Path

from pipeline.config.expand import SUITE_FILE, expansion_of, params_text
from pipeline.config.params import NAME, load_params
from pipeline.config.suggest import unknown_name
from pipeline.config.yaml_files import read_yaml
from pipeline.errors import UserError
from pipeline.loading import HERE
from pipeline.project import SUITES, is_suite, suite_folders
from pipeline.results.suite_project import write_suite_project
from pipeline.starting.texts import render
from pipeline.tables.paper import load_paper
from pipeline.writing import write_bytes

_WRITTEN = (SUITE_FILE, "params.yaml")
"""What people write; the first that is there."""


def suites_that_came_along() -> dict[str, Path]:
    """Return the suites of the paper by name: in a wheel data of the package, else beside it."""
    installed = Path(HERE, "pipeline", SUITES)
    if not installed.is_dir():
        return suite_folders(Path(HERE))
    return {folder.name: folder for folder in sorted(installed.iterdir()) if is_suite(folder)}


def new_suite(root: Path, name: str, nearest: str | None) -> Path:
    """Write a suite's folder, whole, and return it.

    Args:
        root: Of the project.
        name: Of the suite.
        nearest: Name of the suite that it is begun from; None: a small one, explained.

    Raises:
        UserError: There is such a folder, the name will not do, or there is no such suite.
    """
    if not NAME.fullmatch(name) or name == "demo":
        hint = "demo is the root's" if name == "demo" else "lower-case letters, digits, - and _"
        raise UserError(f"{name!a} is no name for a suite: {hint}; choose another")
    folder = root / SUITES / name
    if os.path.lexists(folder):
        raise UserError(f"{folder} exists; choose another name, or edit its params.yaml")
    title = _title(name)
    if nearest is None:
        texts = {"params.yaml": render("suite.yaml.j2", suite=name, title=title)}
    else:
        file = _file_of(root, nearest)
        text = file.read_text(encoding="utf-8")
        old = str(read_yaml(file).get("title", nearest))
        texts = {file.name: _renamed(text, file, name, f"{old} ({name})")}
    part = folder.with_name(f".{name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        for file_name, text in texts.items():
            write_bytes(part / file_name, text.encode())
        expanded = expansion_of(part)
        if expanded is not None:
            write_bytes(part / "params.yaml", params_text(expanded).encode())
        load_params(part / "params.yaml", load_paper().references())
        write_suite_project(part, root)
        os.rename(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def _file_of(root: Path, nearest: str) -> Path:
    own = {suite: folder for suite, folder in suite_folders(root).items() if is_suite(folder)}
    known = {**suites_that_came_along(), **own}
    if nearest not in known:
        raise UserError(unknown_name("suite", nearest, known))
    return next(file for name in _WRITTEN if (file := known[nearest] / name).is_file())


def _renamed(text: str, file: Path, name: str, title: str) -> str:
    """Return a suite's text under another name, its comments kept."""
    for key, value in (("suite", name), ("title", json.dumps(title, ensure_ascii=False))):
        line = re.compile(rf"^{key}:.*$", re.MULTILINE)
        if not line.search(text):
            raise UserError(f"{file} has no line `{key}: ...` at its top level; add it")
        text = line.sub(lambda _, text=f"{key}: {value}": text, text, count=1)
    return text


def _title(name: str) -> str:
    words = re.sub(r"[-_]+", " ", name).strip()
    return f"{words[:1].upper()}{words[1:]}"
