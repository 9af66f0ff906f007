"""Which results the suites' dvc.lock name now, and which runs are ahead of it. Reads only.

An experiment has results as long as `params.yaml` has it. What runs now, and what has ended since
dvc.lock was written, is ahead of it: DVC writes it in a moment, or the next `dvc repro` does.
"""

import dataclasses
import hashlib
import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config.starts import by_run
from pipeline.config.yaml_files import read_yaml
from pipeline.errors import UserError
from pipeline.jobs.folder import JobFolder
from pipeline.jobs.journal import RunName, first_lines, read_run_name
from pipeline.jobs.liveness import has_succeeded, is_under_way
from pipeline.project import suite_folders
from pipeline.results.documents import hashes_of
from pipeline.results.dvc_cache import DvcCache
from pipeline.results.dvc_experiment import ASIDE
from pipeline.stages.table import ENCODER, MEASURED, PRETRAIN, key_of, stage_of
from pipeline.tracking.port import CurrentResult, SuiteResults

logger = logging.getLogger(__name__)

_NAMES = {stage.name for stage in MEASURED}


@dataclass(frozen=True)
class _Ahead:
    """A run that dvc.lock cannot know of; until when it wrote, in seconds since 1970."""

    run: RunName
    until: float


def current_results(root: Path) -> list[SuiteResults]:
    """Return what counts now in each suite of a project.

    A suite whose files cannot be read is left out, with a warning.

    Args:
        root: Folder that has `.dvc`.
    """
    ahead, found = _runs_ahead(root), list[SuiteResults]()
    for folder in suite_folders(root).values():
        if (folder / "params.yaml").is_file():
            try:
                found.append(_results_of(folder, root, ahead))
            except UserError as error:
                logger.warning("%s; what is current of this suite stays as it is", error)
    return found


def _results_of(folder: Path, root: Path, ahead: list[_Ahead]) -> SuiteResults:
    params, file = read_yaml(folder / "params.yaml"), folder / "dvc.lock"
    recorded: dict[str, Any] = (read_yaml(file).get("stages") or {}) if file.is_file() else {}
    lock = by_run(recorded, params)
    suite = str(params.get("suite", ""))
    written = file.stat().st_mtime if file.is_file() else 0.0
    experiments: dict[str, dict[str, CurrentResult]] = {
        key: {} for key in _keys(params, PRETRAIN.section)
    }
    named: set[str] = set()
    for name, entry in lock.items():
        key, stage = key_of(name), stage_of(name) if name.partition("@")[0] in _NAMES else None
        if stage is None or key not in _keys(params, stage.section):
            continue
        result = _named_result(folder, root, name, entry)
        named.add(result.fingerprint)
        if key in experiments and _is_of_present_encoder(entry, lock, key):
            experiments[key][stage.name] = result
    for key, results in experiments.items():
        for stage in MEASURED:
            result = _shown_result(folder / str(stage.metrics_path(key)), written)
            if result is not None and result.fingerprint not in named:
                _put(results, stage.name, result)
    for each in ahead:
        run = each.run
        if run.suite == suite and run.key in experiments and run.fingerprint not in named:
            _add_ahead(experiments[run.key], each, written)
    return SuiteResults(suite, experiments, frozenset(named))


def _keys(params: Mapping[str, Any], section: str | None) -> list[str]:
    found = params.get(section or "")
    return [str(key) for key in found] if isinstance(found, Mapping) else []


def _is_of_present_encoder(entry: Mapping[str, Any], lock: Mapping[str, Any], key: str) -> bool:
    """Say whether a result was made from the encoder that dvc.lock has now, or is that."""
    path = ENCODER.format(key=key)
    used = hashes_of(entry.get("deps", [])).get(path)
    made = hashes_of(lock.get(PRETRAIN.run_name(key), {}).get("outs", [])).get(path)
    return used is None or (made is not None and used["md5"] == made["md5"])


def _named_result(folder: Path, root: Path, name: str, entry: Mapping[str, Any]) -> CurrentResult:
    """Return the result that an entry of dvc.lock names, whatever lies in the workspace.

    Its metrics file says which run made it: one that was vouched for is filed under other keys too.
    """
    path = str(stage_of(name).metrics_path(key_of(name)))
    hashed = hashes_of(entry.get("outs", [])).get(path)
    text = None if hashed is None else _text(root, folder / path, hashed["md5"])
    return _parsed(text) or CurrentResult(DvcCache().key(dict(entry)), None)


def _shown_result(metrics: Path, written: float) -> CurrentResult | None:
    """Return what a metrics file says that is newer than dvc.lock, which is written after it."""
    try:
        is_news = metrics.stat().st_mtime > written
        found = _parsed(metrics.read_text(encoding="utf-8")) if is_news else None
    except (OSError, UnicodeDecodeError):
        return None
    return None if found is None else dataclasses.replace(found, ahead=True)


def _parsed(text: str | None) -> CurrentResult | None:
    """Return the result that a metrics file has; None where it is damaged or not there."""
    try:
        said: dict[str, Any] = json.loads(text or "")
        numbers = {name: float(value) for name, value in said.items() if _is_number(value)}
        return CurrentResult(str(said["fingerprint"]), numbers)
    except (ValueError, KeyError, AttributeError, TypeError):
        return None


def _text(root: Path, path: Path, md5: str) -> str | None:
    """Return the text of a file as dvc.lock has it, from the workspace or from DVC's cache."""
    try:
        content = path.read_bytes()
    except OSError:
        content = b""
    if hashlib.md5(content, usedforsecurity=False).hexdigest() == md5:
        return content.decode("utf-8", errors="replace")
    return DvcCache().read(root, md5)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _runs_ahead(root: Path) -> list[_Ahead]:
    """Return the runs that no dvc.lock can know of, oldest first.

    A run of the workspace is ahead while it goes on; what a job has made waits to be taken over.
    """
    found: list[_Ahead] = []
    for file in (root / ".asl" / "jobs").glob("*/journal/attempt-000.jsonl"):
        job = JobFolder(file.parent.parent)
        goes_on = is_under_way(job.journal)
        if not goes_on and not (job.job.exists() and has_succeeded(job.journal)):
            continue
        run = read_run_name(job.journal)
        if run is not None and run.stage in _NAMES and not is_aside(job.journal):
            newest = max(path.stat().st_mtime for path in job.journal.glob("attempt-*.jsonl"))
            found.append(_Ahead(run, math.inf if goes_on else newest))
    return sorted(found, key=lambda each: each.run.started)


def is_aside(journal: Path) -> bool:
    """Say whether the last attempt was made for an experiment of DVC outside the workspace."""
    said = first_lines(max(journal.glob("attempt-*.jsonl")))
    return any(line.get("values", {}).get(ASIDE) == "true" for line in said)


def _add_ahead(results: dict[str, CurrentResult], ahead: _Ahead, written: float) -> None:
    """Add what goes on, which will replace what there is, or what waits where there is nothing."""
    run, goes_on = ahead.run, ahead.until == math.inf
    if not goes_on and (run.stage in results or ahead.until <= written):
        return
    _put(results, run.stage, CurrentResult(run.fingerprint, None, ahead=True))


def _put(results: dict[str, CurrentResult], stage: str, result: CurrentResult) -> None:
    if stage == PRETRAIN.name:
        results.clear()  # measured of another encoder
    results[stage] = result
