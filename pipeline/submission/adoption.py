"""Take finished results over into a suite: its folder and dvc.lock. Runs no stage, commits nothing.

DVC itself does it, as `dvc repro` would, for those runs alone whose result is in the run-cache and
not in dvc.lock.
"""

import logging

from pipeline.config.params import load_params
from pipeline.errors import NotFinishedError, UserError
from pipeline.project import Project
from pipeline.results.port import ResultCache, StageFacts
from pipeline.stages.table import key_of, stage_of
from pipeline.submission.selection import Wanted, choose

logger = logging.getLogger(__name__)


def adopt(project: Project, cache: ResultCache) -> list[str]:
    """Take over what has been finished, each run after those that it needs.

    Returns:
        Names of the runs that dvc.lock has now and did not have before.

    Raises:
        UserError: params.yaml or dvc.yaml is wrong.
        NotFinishedError: DVC did not do it, for it is busy or files change meanwhile.
    """
    wanted = choose(load_params(project.params_file), Wanted())
    todo = {
        name: facts
        for name, facts in cache.survey(project.suite, wanted).items()
        if _is_new(facts, cache)
    }
    adopted: list[str] = []
    while todo:
        level = [name for name, facts in todo.items() if not todo.keys() & facts.upstream.values()]
        ready = [name for name in level if _is_ready(project, todo[name], cache)]
        if ready:
            try:
                cache.adopt(project.suite, ready)
            except OSError as error:
                raise NotFinishedError(f"{', '.join(ready)}: not taken over: {error}") from error
        adopted += ready
        todo = {name: facts for name, facts in todo.items() if name not in level}
    return adopted


def files_for_git(names: list[str]) -> list[str]:
    """Return what a commit of adopted runs consists of, relative to the suite's folder."""
    metrics = [stage_of(name).metrics_path(key_of(name)) for name in names]
    return ["dvc.lock", *(path for path in metrics if path is not None)]


def _is_new(facts: StageFacts, cache: ResultCache) -> bool:
    if facts.outputs is None:
        return False
    return facts.locked is None or cache.key(facts.locked) != facts.fingerprint


def _is_ready(project: Project, facts: StageFacts, cache: ResultCache) -> bool:
    """Say whether DVC would find the result from what is in the workspace now."""
    try:
        found = cache.identify(project.suite, facts.name).fingerprint
    except UserError as error:
        logger.warning("%s", error)
        return False
    if found != facts.fingerprint or cache.find(project.root, found) is None:
        logger.warning(
            "%s: left out: its inputs in the workspace are others than its result was made from; "
            "dvc checkout brings them back", facts.name,
        )  # fmt: skip
        return False
    return True
