"""Take finished results over into a suite: its folder and dvc.lock. Runs no stage, commits nothing.

DVC itself does it, as `dvc repro` would, for those runs alone whose result is in the run-cache and
not in dvc.lock.
"""

from pipeline.config.params import load_params
from pipeline.errors import NotFinishedError
from pipeline.project import Project
from pipeline.results.port import ResultCache, StageFacts
from pipeline.stages.table import key_of, stage_of
from pipeline.submission.put_back import put_back_results
from pipeline.submission.selection import Wanted, survey


def adopt(project: Project, cache: ResultCache) -> list[str]:
    """Take over what has been finished, each run after those that it needs.

    Says a line for each run that is left out, because its inputs in the workspace are others.

    Returns:
        Names of the runs that dvc.lock has now and did not have before.

    Raises:
        UserError: params.yaml or dvc.yaml is wrong.
        NotFinishedError: DVC did not do it, for it is busy or files change meanwhile.
    """
    put_back_results(project.root, cache)
    facts = survey(project, load_params(project.params_file), Wanted(), cache)
    new = [name for name, known in facts.items() if _is_new(known, cache)]
    if not new:
        return []
    try:
        return cache.adopt(project.suite, new)
    except OSError as error:
        raise NotFinishedError(f"{', '.join(new)}: not adopted: {error}") from error


def files_for_git(names: list[str]) -> list[str]:
    """Return what a commit of adopted runs consists of, relative to the suite's folder."""
    metrics = [stage_of(name).metrics_path(key_of(name)) for name in names]
    return ["dvc.lock", *(path for path in metrics if path is not None)]


def _is_new(facts: StageFacts, cache: ResultCache) -> bool:
    if facts.outputs is None:
        return False
    return facts.locked is None or cache.key(facts.locked) != facts.fingerprint
