"""Where a table's number came from, and whether it still holds. Changes nothing."""

import importlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from asl_core.wording import counted
from pipeline.config.cluster import load_resources
from pipeline.config.suggest import folded, unknown_name
from pipeline.config.yaml_files import read_yaml
from pipeline.errors import UserError
from pipeline.execution.compute import set_threads
from pipeline.execution.gpus import find_gpus
from pipeline.execution.stored import stored_run
from pipeline.project import Project, folded_title
from pipeline.results.code import packages_folder, refresh_identities
from pipeline.results.port import ResultCache
from pipeline.results.running_code import check_loaded_code
from pipeline.results.vouchings import Vouching, vouchings_in
from pipeline.stages.table import STAGES, name_in_dvc
from pipeline.tables.collect import Suite, read_suite
from pipeline.tables.layout import contrastive_table, lay_out, similarity_table, suite_table
from pipeline.tables.lock import read_lock
from pipeline.tables.paper import load_paper
from pipeline.tables.render import measured
from pipeline.tables.trace import Link, TracedCell, trace_cell
from pipeline.tables.uncertainty import describe_sample
from pipeline.tracking.find import find_tracker


@dataclass(frozen=True)
class Check:
    """One thing that was looked at again.

    Attributes:
        what: A path, or a metric.
        holds: It is as it was recorded.
        detail: Both values where they differ; what could not be looked at.
    """

    what: str
    holds: bool
    detail: str


def trace(project: Project, table: str, row: str, metric: str) -> tuple[Suite, TracedCell]:
    """Follow a number to the runs that it came from.

    Args:
        project: The project and the suite.
        table: One that the suite names, or the suite itself, which has its companions too.
        row: Name of a row, or of an experiment in it.
        metric: Its name in the metrics files, or the header of its column.

    Raises:
        UserError: There is no such table, row or metric, or no number of ours.
    """
    paper, suite = load_paper(), read_suite(project)
    tables = lay_out(suite, paper)
    own = {folded(each) for each in (suite.name, suite.title, project.suite.name, project.name)}
    companions = [similarity_table(suite, paper), contrastive_table(suite, paper)]
    shown = [each for each in companions if each is not None]
    wanted = folded_title(table)
    if wanted in own:
        tables += shown
    elif titled := [each for each in shown if folded(each.title) == wanted]:
        tables = titled
    else:
        reference = suite_table(suite, paper, table)
        if reference is None:
            raise UserError(unknown_name("table", table, [suite.name, *suite.tables]))
        if not suite.reduced:
            tables = [tables[suite.tables.index(reference)]]
    return suite, trace_cell(suite, paper, tables, row, metric)


def headline(traced: TracedCell) -> str:
    """Return the cell as the table has it."""
    cell, metric = traced.cell, traced.cell.metric
    ours = f"{measured(cell)} {metric.unit}".rstrip()
    if cell.spread is not None:
        ours += f", mean and deviation of {counted(len(cell.measured), 'run')}"
    paper = "none" if cell.paper is None else str(cell.paper)
    remarks = "; reduced scale" if cell.reduced else ""
    remarks += "; dvc.lock does not stand behind it" if cell.differing else ""
    where = f"{traced.line.label}, {traced.heading.header}"
    return f"{traced.table.title}\n{where}: {ours} (paper: {paper}{remarks})"


def facts(suite: Suite, link: Link, metric: str) -> Iterator[tuple[str, str]]:
    """Yield what is known of a run, each with a word for what it is."""
    result, said, tags = link.result, link.origin, link.origin.tags
    if link.value is not None:
        path = link.metrics.relative_to(suite.folder)
        yield "metrics", f"{path}: {metric} = {result.metrics.get(metric)!r}"
        sample = describe_sample(load_paper().metrics[metric], metric, result)
        if sample:
            yield "tested", sample
    if result.difference:
        yield "DIFFERS", result.warning
    yield "DVC", f"{result.state} in dvc.lock, key {result.fingerprint or 'unknown'}"
    for path, md5 in result.outputs.items():
        yield "output", f"{path} {md5 or 'not recorded'}"
    for path, md5 in result.inputs.items():
        yield "input", f"{path} {md5}"
    tracker = find_tracker(suite.root)
    page = None if result.fingerprint is None else tracker.page_of(result.fingerprint)
    yield tracker.title, page or "not in this project's store"
    yield "code", _code(tags)
    for vouching in _vouchings(suite, link):
        yield "vouched", str(vouching)
    for name, digest in said.datasets.items():
        yield "data", f"{name} {digest}"
    yield "machine", _machine(tags, said.host)
    if "container.image" in tags:
        yield "image", _image(tags)
    if "pictures" in tags:
        yield "pictures", f"not drawn: {tags['pictures']}"
    if said.seconds is not None:
        memory = "" if said.peak_memory_gib is None else f", {said.peak_memory_gib:.2f} GiB"
        attempts = f"{counted(said.attempts, 'attempt')}"
        yield "effort", f"{said.seconds:.0f} s in {attempts}{memory}"


def _vouchings(suite: Suite, link: Link) -> list[Vouching]:
    path = link.metrics.relative_to(suite.folder).as_posix()
    return vouchings_in(suite.root, path, link.result.fingerprint)


def _code(tags: Mapping[str, str]) -> str:
    if "git.commit" not in tags:
        return "not recorded"
    commit = f"commit {tags['git.commit']}"
    if "git.patch" in tags:
        commit += f", changed by a patch with the digest {tags['git.patch']}"
    return commit + (f", frozen as {tags['snapshot'][:12]}" if "snapshot" in tags else "")


def _image(tags: Mapping[str, str]) -> str:
    digest, runtime = (tags.get(f"container.{name}", "unknown") for name in ("digest", "runtime"))
    return f"{tags['container.image']} {digest}, {runtime}"


def _machine(tags: Mapping[str, str], host: str) -> str:
    parts = [tags.get("job.nodes", host) or "unknown"]
    if "bundle" in tags:
        parts.append(f"from bundle {tags['bundle']}")
    if "job.id" in tags:
        parts.append(f"job {tags['job.id']} of {tags.get('job.scheduler', 'unknown')}")
    if tags.get("gpu.uuids") == "none":
        parts.append("no GPU")
    elif "gpu.uuids" in tags:
        model, driver = (tags.get(name, "unknown") for name in ("gpu.model", "gpu.driver"))
        parts.append(f"GPUs {tags['gpu.uuids']} ({model}), driver {driver}")
    if "threads" in tags:
        count = int(tags["threads"])
        where = f"computed on {tags['device']} with {count} thread{'s' if count > 1 else ''}"
        parts.append(f"{where}, {tags['kernels']} kernels")
    parts += [f"{name} {tags[name]}" for name in ("torch", "python") if name in tags]
    return ", ".join(parts)


def verify(
    project: Project, suite: Suite, traced: TracedCell, cache: ResultCache
) -> Iterator[Check]:
    """Yield whether files still have the digests that dvc.lock has, then whether numbers hold.

    A number is computed again from the stored weights, unless a file it depends on has changed.

    Args:
        project: The project and the suite.
        suite: Its results.
        traced: The number.
        cache: Computes digests.
    """
    digests: dict[Path, str | None] = {}

    def digest(path: str) -> str | None:
        place = suite.folder / path
        if place not in digests:
            digests[place] = cache.digest(suite.root, place)
        return digests[place]

    changed: set[str] = set()
    for link in traced.links:
        for check in (*_check_files(suite, link, digest), *_check_key(suite, link, cache)):
            if not check.holds:
                changed.add(link.result.key)
            yield check
    for link in traced.links:
        if link.value is None:
            continue
        if link.result.key in changed:
            yield Check(link.name, False, "not evaluated: its files have changed")
        else:
            yield _evaluate(project, suite, link, traced)


def _check_files(suite: Suite, link: Link, digest: Callable[[str], str | None]) -> Iterator[Check]:
    metrics = str(STAGES[link.result.stage].metrics_path(link.result.key))
    recorded: dict[str, str | None] = {**link.result.inputs, **link.result.outputs}
    recorded[metrics] = read_lock(suite.folder).digest(link.name, metrics)
    for path, expected in recorded.items():
        found = digest(path)
        if expected is None:
            yield Check(path, False, f"{link.name} is not recorded in dvc.lock")
        elif found is None:
            restores = link.result.command if path == metrics else "dvc checkout"
            yield Check(path, False, f"missing; `{restores}` restores it")
        elif found != expected:
            yield Check(path, False, f"dvc.lock says {expected}, found {found}")
        else:
            yield Check(path, True, found)


def _check_key(suite: Suite, link: Link, cache: ResultCache) -> Iterator[Check]:
    """Check that dvc.lock's parameters, inputs and code are those that the number was made under.

    Made under is what its file says, or what somebody vouched for.
    """
    lock = suite.folder / "dvc.lock"
    recorded = read_yaml(lock).get("stages", {}) if lock.exists() else {}
    entry = recorded.get(name_in_dvc(link.name, recorded))
    if entry is None:  # its files were found wanting already
        return
    made = link.result.fingerprint
    keys = {made, *(each.filed_under for each in _vouchings(suite, link))}
    found = cache.key(entry)
    detail = found if found in keys else f"dvc.lock gives {found}, the metrics file has {made}"
    yield Check(f"{link.name} key", found in keys, detail)


def _evaluate(project: Project, suite: Suite, link: Link, traced: TracedCell) -> Check:
    resources = load_resources(project.cluster_file, link.result.stage, link.result.key)
    set_threads(resources, find_gpus())
    stage, key, recipe = STAGES[link.result.stage], link.result.key, link.result.recipe
    inputs = {r: suite.folder / path for r, path in stage.input_paths(key, recipe).items()}
    what = f"{link.name} {traced.metric}"
    module = importlib.import_module(stage.module)  # this is where torch is loaded
    refresh_identities(suite.folder)
    code = (suite.folder / stage.code_path(recipe)).read_text(encoding="utf-8")
    check_loaded_code(code, packages_folder(suite.folder))
    with stored_run(project, suite.folder, stage, key, recipe, inputs, resources) as run:
        numbers = module.reevaluate(run)
    again, stored = numbers.get(traced.metric), link.result.metrics[traced.metric]
    if again is None:
        return Check(
            what, False, f"{stored!r} was measured during training and cannot be recomputed"
        )
    both = f"stored {stored!r}, now {again!r}, difference {again - stored:.3g}"
    smallest = 0.5 * 10.0**-traced.cell.metric.decimals
    return Check(what, math.isclose(again, stored, rel_tol=0, abs_tol=smallest), both)
