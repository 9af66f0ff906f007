"""Computing a stored result again under the current code, and comparing: steps, metrics, files."""

import dataclasses
import filecmp
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from asl_core.engine.journal import Journal
from asl_core.engine.witness import Circumstances, Witness, first_difference, read_witness
from asl_core.errors import ReplayFinished
from asl_core.recipes.optimisation import Resources
from pipeline.errors import AslPipeError
from pipeline.execution.stored import scratch, stored_run
from pipeline.jobs.journal import read_records
from pipeline.project import Project
from pipeline.stages.request import StageFunction, StageRequest, StoredRun
from pipeline.stages.table import Stage
from pipeline.tables.metrics_file import read_metrics_file

logger = logging.getLogger(__name__)


class NotEqualError(AslPipeError):
    """Raised when the present code makes something else; says where it differs first."""


def replay(
    project: Project,
    stage: Stage,
    key: str,
    run: StageFunction,
    recipe: object,
    inputs: dict[str, Path],
    resources: Resources,
    old: Witness,
) -> int:
    """Compute the first steps again and return how many; all that is written goes again.

    Raises:
        NotEqualError: A step or a tensor differs; says which first, and by how much.
    """
    with scratch(project) as folder:
        outputs = {role: folder / "out" / role for role in stage.outputs}
        for output in outputs.values():
            output.mkdir(parents=True)
        with Journal.open(folder / "journal") as journal:
            request = StageRequest(
                stage.name, key, recipe, inputs, folder, outputs, journal, resources,
                replay=True,
            )  # fmt: skip
            try:
                run(request)
            except ReplayFinished as finished:
                logger.info("%s", finished)
        new = read_witness((r.kind, r.body) for r in read_records(folder / "journal"))
    difference = first_difference(old, new)
    if difference is not None:
        raise NotEqualError(
            f"{stage.run_name(key)}: the current code computes something else: {difference}"
            f"{_explanation(old.circumstances, new.circumstances)}"
        )
    return max(new.losses)


def _explanation(old: tuple[Circumstances, ...], new: tuple[Circumstances, ...]) -> str:
    """Return what else than the code may have made a difference: another machine, another torch."""
    if not (old and new):
        return ""
    before, now = dataclasses.asdict(old[0]), dataclasses.asdict(new[0])
    found = [
        f"{name} {before[name]} -> {now[name]}" for name in before if before[name] != now[name]
    ]
    return f" ({', '.join(found)})" if found else ""


def evaluate_again(
    project: Project,
    stage: Stage,
    key: str,
    reevaluate: Callable[[StoredRun[Any]], dict[str, float]],
    recipe: object,
    inputs: dict[str, Path],
    resources: Resources,
) -> tuple[str, ...]:
    """Compare all metrics, and what later stages read, with what the current code makes of them.

    Returns:
        Names of the metrics.

    Raises:
        NotEqualError: Something differs; says what, and by how much.
    """
    run_name, metrics = stage.run_name(key), stage.metrics_path(key)
    with stored_run(project, project.suite, stage, key, recipe, inputs, resources) as run:
        found = reevaluate(run)
        found = {name: value for name, value in found.items() if math.isfinite(value)}
        file = read_metrics_file(project.suite / str(metrics))
        stored = {} if file is None else file.numbers
        if others := sorted(stored.keys() ^ found.keys()):
            raise NotEqualError(
                f"{run_name}: the current code measures by other names: {', '.join(others)} "
                f"{'is' if len(others) == 1 else 'are'} not in both"
            )
        for name, value in found.items():
            if stored[name] != value:
                raise NotEqualError(
                    f"{run_name}: {name} was {stored[name]!r}, the current code gives {value!r}, "
                    f"{abs(value - stored[name]):.3g} apart"
                )
        for role, path in run.outputs.items():
            _compare_files(run_name, path, run.again[role])
    return tuple(found)


def _compare_files(name: str, stored: Path, again: Path) -> None:
    made = [file.relative_to(again) for file in again.rglob("*") if file.is_file()]
    for file in made:
        old = stored / file
        if not old.is_file() or not filecmp.cmp(old, again / file, shallow=False):
            raise NotEqualError(f"{name}: the current code writes another {old}")
    if not made and any(stored.iterdir()):
        raise NotEqualError(f"{name}: the current code leaves {stored} empty")
