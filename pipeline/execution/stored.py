"""A stage run that has ended, laid out for evaluation."""

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from asl_core.recipes.optimisation import Resources
from pipeline.project import Project
from pipeline.stages.request import DETAILS, StoredRun
from pipeline.stages.table import Stage


@contextlib.contextmanager
def stored_run(
    project: Project,
    suite: Path,
    stage: Stage,
    key: str,
    recipe: object,
    inputs: Mapping[str, Path],
    resources: Resources,
) -> Iterator[StoredRun[Any]]:
    """Yield a run with new folders to write its outputs into again, which go at the end."""
    outputs = {r: suite / path for r, path in stage.output_paths(key).items() if r != DETAILS}
    with scratch(project) as folder:
        again = {role: folder / role for role in outputs}
        for path in again.values():
            path.mkdir()
        details = stage.details(suite, key)
        yield StoredRun(recipe, details, dict(inputs), resources, outputs, again)


@contextlib.contextmanager
def scratch(project: Project) -> Iterator[Path]:
    """Yield a new folder that goes again: two processes may look at one result.

    For who may only read the project it is with the machine's temporary files.
    """
    replays = project.scratch / "replays"
    try:
        replays.mkdir(parents=True, exist_ok=True)
        writable = os.access(replays, os.W_OK)
    except OSError:
        writable = False
    with tempfile.TemporaryDirectory(dir=replays if writable else None) as folder:
        yield Path(folder)
