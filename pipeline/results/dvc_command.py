"""Filing a result through DVC's commands alone: the way that no change inside DVC can close.

A project of its own beside the job, whose cache is the real one: `dvc repro` of one stage whose
command, inputs, parameters and outputs are those of the run, and whose program only puts the
outputs into place. It hashes the inputs again, which the direct way does not. Results are taken
over from DVC's run-cache through its commands too.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from pipeline.results.documents import Hashes, differences, hashes_of
from pipeline.results.port import Filing

STAGE = "result"

TIMEOUT_S = 3600.0
"""For one command; it may have to hash a large dataset. The job that waits heeds no signals."""

LOCK_S, LOCK_PAUSE_S = 120.0, 1.0
"""How long to wait for another DVC command; DVC itself gives up after three seconds."""

LOCKED = re.compile(r"unable to acquire lock|is busy, it is being blocked by", re.IGNORECASE)


def file_through_commands(filing: Filing) -> Hashes:
    """Let DVC run a stage that leaves the outputs of `filing`, and thereby file them.

    Returns:
        The outputs' hashes.

    Raises:
        OSError: DVC did not do it, or found other inputs than the run had; carries what it said.
    """
    folder = filing.scratch / "filing"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "bin").mkdir(parents=True)
    cache = _dvc(filing.root, "cache", "dir").strip()
    _dvc(folder, "init", "--no-scm", "--quiet")
    for name, value in (
        ("core.analytics", "false"), ("cache.dir", cache), ("cache.type", "copy"),
        ("core.site_cache_dir", str(folder / ".site")),
    ):  # fmt: skip
        _dvc(folder, "config", name, value)
    if (filing.root / ".dvcignore").is_file():
        shutil.copy(filing.root / ".dvcignore", folder / ".dvcignore")
    shutil.copy(filing.params, folder / "params.yaml")
    for dep in filing.document["deps"]:
        _link(folder / dep["path"], filing)
    YAML(typ="safe").dump({"stages": {STAGE: _stage(filing)}}, folder / "dvc.yaml")
    _write_program(folder, filing)
    path = os.pathsep.join([str(folder / "bin"), os.environ.get("PATH", os.defpath)])
    _dvc(folder, "repro", "--single-item", "--force", STAGE, PATH=path)
    recorded = YAML(typ="safe").load(folder / "dvc.lock")["stages"][STAGE]
    differing = differences({**filing.document, "outs": recorded["outs"]}, recorded)
    if differing:
        raise OSError(f"filed under inputs it was not made from: {', '.join(differing)}")
    shutil.rmtree(folder, ignore_errors=True)
    return hashes_of(recorded["outs"])


def adopt_through_commands(suite: Path, names: Sequence[str]) -> None:
    """Let `dvc repro` take results of stages from its run-cache into a suite and its dvc.lock.

    Should one not be there after all, its stage is not run: the program that stages call is, for
    this one command, one that refuses.

    Raises:
        OSError: DVC did not do it; carries what it said.
    """
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "asl-pipe")
        program.write_text("#!/bin/sh\nexit 75\n", encoding="utf-8")
        program.chmod(0o755)
        path = os.pathsep.join([folder, os.environ.get("PATH", os.defpath)])
        _dvc(suite, "repro", "--single-item", *names, PATH=path)


def _stage(filing: Filing) -> dict[str, Any]:
    document = filing.document
    params = [
        key if file == "params.yaml" else {file: [key]}
        for file, values in document.get("params", {}).items()
        for key in values
    ]
    return {
        "cmd": document["cmd"],
        "deps": [dep["path"] for dep in document["deps"]],
        "params": params,
        "outs": sorted(filing.outputs),
    }


def _link(target: Path, filing: Filing) -> None:
    """Show an input at its path: from the frozen code, or from what was laid out for the job."""
    relative = target.relative_to(filing.scratch / "filing")
    place = next(p for p in (filing.inputs / relative, filing.code / relative) if p.exists())
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(place.resolve())


def _write_program(folder: Path, filing: Filing) -> None:
    """Write the program that the command names: it copies the outputs into place."""
    lines = ["#!/bin/sh", "set -e"]
    for path, place in filing.outputs.items():
        parent = shlex.quote(str(Path(path).parent))
        lines.append(f"mkdir -p {parent}")
        lines.append(f"cp -R {shlex.quote(str(place))} {shlex.quote(path)}")
    program = folder / "bin" / shlex.split(filing.document["cmd"])[0]
    program.write_text("\n".join(lines) + "\n", encoding="utf-8")
    program.chmod(0o755)


def _dvc(folder: Path, *arguments: str, **environment: str) -> str:
    """Run DVC and return what it printed; wait where another DVC has the project's lock.

    Raises:
        OSError: It failed; carries what it said.
    """
    give_up = time.monotonic() + LOCK_S
    while True:
        try:
            return _dvc_once(folder, *arguments, **environment)
        except OSError as error:
            if LOCKED.search(str(error)) is None or time.monotonic() > give_up:
                raise
        time.sleep(LOCK_PAUSE_S)


def _dvc_once(folder: Path, *arguments: str, **environment: str) -> str:
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "dvc", *arguments],
            cwd=folder, capture_output=True, text=True, check=False, timeout=TIMEOUT_S,
            env={**os.environ, "SHELL": "/bin/sh", **environment},
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise OSError(
            f"dvc {' '.join(arguments)} in {folder} took more than {TIMEOUT_S:.0f} s"
        ) from error
    if done.returncode != 0:
        said = " ".join((done.stderr or done.stdout).split())
        raise OSError(f"dvc {' '.join(arguments)} failed in {folder}: {said[-1000:]}")
    return done.stdout
