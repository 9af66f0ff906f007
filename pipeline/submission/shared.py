"""Which runs several suites have in common: DVC's run-cache makes them once.

Read from params.yaml alone, without asking DVC: a run's command and parameters, and those of all
that it depends on.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.config.starts import chain, starts_in
from pipeline.config.yaml_files import read_yaml
from pipeline.errors import UserError
from pipeline.project import Project, suite_folders
from pipeline.stages.table import DATASETS, MEASURED, PREPARE, PRETRAIN, STAGES, Stage


def shared_runs(project: Project) -> dict[str, tuple[str, ...]]:
    """Return, for every other suite that has any, the runs that it shares with the project's suite.

    A suite whose params.yaml cannot be read shares nothing.
    """
    own = {text: name for name, text in signatures(project.params_file).items()}
    found: dict[str, tuple[str, ...]] = {}
    for suite, folder in suite_folders(project.root).items():
        if folder == project.suite:
            continue
        try:
            others = set(signatures(folder / "params.yaml").values())
        except UserError:
            continue
        if names := tuple(name for text, name in own.items() if text in others):
            found[suite] = names
    return found


def signatures(params_file: Path) -> dict[str, str]:
    """Return for each run what makes it what it is, as text: equal texts are one run.

    Raises:
        UserError: The file cannot be read.
    """
    raw = read_yaml(params_file)
    made: dict[str, str] = {}
    starts = starts_in(raw)
    for stage, key, entry in sorted(_runs(raw), key=lambda run: _depth(run, starts)):
        upstream = (
            []
            if stage is PREPARE
            else [each.run_name(entry.get("dataset", "")) for each in DATASETS]
        )
        if stage.evaluates:
            upstream.append(PRETRAIN.run_name(key))
        if stage is PRETRAIN and key in starts:
            upstream.append(stage.run_name(starts[key]))
        scale = raw.get("scale") if stage.has_metrics else None
        known = [made[name] for name in upstream if name in made]
        made[stage.run_name(key)] = json.dumps(
            [stage.name, key, scale, entry, known], sort_keys=True
        )
    return made


def _depth(run: tuple[Stage, str, object], starts: Mapping[str, str]) -> tuple[int, int]:
    """Return where a run comes: stages in order, in `pretrain` first what others begin with."""
    stage, key, _ = run
    return list(STAGES).index(stage.name), len(chain(starts, key)) if stage is PRETRAIN else 0


def _runs(raw: Mapping[str, Any]) -> Iterator[tuple[Stage, str, Mapping[str, Any]]]:
    """Yield the runs of a file, those first that others depend on."""
    for stage in (*DATASETS, *MEASURED):
        section = raw.get(str(stage.section))
        for key, entry in section.items() if isinstance(section, Mapping) else ():
            if isinstance(entry, Mapping):
                yield stage, str(key), entry
