"""Which runs of a suite a person means. Reads only."""

from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.config.params import Params
from pipeline.config.suggest import unknown_name
from pipeline.errors import UserError
from pipeline.project import Project
from pipeline.results.port import ResultCache, StageFacts
from pipeline.results.sources import refresh_sources
from pipeline.stages.table import REPORT, RUN_BY_JOBS, STAGES


@dataclass(frozen=True)
class Wanted:
    """Which runs a submission is about.

    Attributes:
        stage: `pretrain`; None for all of them.
        names: Entries of params.yaml; none: all that the stage has.
        downstream: What needs them too.
        force: Run them although there are results.
    """

    stage: str | None = None
    names: tuple[str, ...] = ()
    downstream: bool = False
    force: bool = False


def choose(params: Params, wanted: Wanted) -> list[str]:
    """Return the names of the runs that are asked for, without what they need.

    Raises:
        UserError: No such stage or entry.
    """
    if wanted.stage is None:
        return [s.run_name(key) for s in RUN_BY_JOBS for key in params.section(s.name)]
    if wanted.stage == REPORT.name:
        raise UserError("the report is not made by a job; run dvc repro")
    stage = STAGES.get(wanted.stage)
    if stage is None:
        names = [stage.name for stage in RUN_BY_JOBS]
        raise UserError(unknown_name("stage", wanted.stage, names))
    section = params.section(wanted.stage)
    for key in wanted.names:
        if key not in section:
            kind = f"entry of stage {wanted.stage} in suite {params.suite}:"
            raise UserError(unknown_name(kind, key, section))
    return [stage.run_name(key) for key in wanted.names or section]


def survey(
    project: Project, params: Params, wanted: Wanted, cache: ResultCache
) -> dict[str, StageFacts]:
    """Return the facts of the runs that are asked for and of what they need, in their order.

    Raises:
        UserError: No such stage or entry, or DVC cannot read the suite.
    """
    chosen = choose(params, wanted)
    refresh_sources(project, params.datasets, cache)
    anew = chosen if wanted.force else ()
    if not wanted.downstream:
        return cache.survey(project.suite, chosen, anew)
    everything = cache.survey(project.suite, choose(params, Wanted()), anew)
    reached = set(chosen)
    for name, facts in everything.items():  # in order, so that one pass is enough
        if reached & set(facts.upstream.values()):
            reached.add(name)
    needed = set(_with_upstream(reached, everything))
    return {name: facts for name, facts in everything.items() if name in needed}


def _with_upstream(names: Iterable[str], facts: dict[str, StageFacts]) -> list[str]:
    found: list[str] = []
    todo = list(names)
    while todo:
        name = todo.pop()
        if name not in found:
            found.append(name)
            todo += facts[name].upstream.values()
    return found
