"""Stand-ins for Slurm's commands, for tests without a Slurm."""

import os
from pathlib import Path

import pytest


def put_first_on_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a folder that comes first on PATH; its sbatch keeps the script and says 27."""
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    write(folder / "srun", "")
    write(folder / "sbatch", 'cp "$2" submitted.sh; echo 27')
    write(folder / "scontrol", "echo 'MaxArraySize = 1001'")
    return folder


def write(path: Path, script: str) -> None:
    """Write a command, given what its shell does."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
