"""Makes a bundle: which runs, from which inputs, in one file that Python runs.

Reads the project and DVC's cache; writes the bundle, and scratch under `.asl` while it does.
"""

import dataclasses
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asl_core.recipes.imported import ImportedRecipe
from pipeline.bundles.archive import write_archive
from pipeline.bundles.contents import LAUNCHER, code_files, packages_of
from pipeline.bundles.manifest import (
    CODE,
    MANIFEST_FILE,
    SUITE,
    Manifest,
    Mark,
    RunPlan,
    mark_bytes,
    mark_folder,
    under,
)
from pipeline.bundles.plain import modules_in, to_plain
from pipeline.config.cluster import load_resources
from pipeline.config.params import Params, load_params
from pipeline.errors import UserError
from pipeline.execution.inputs import (
    find_inputs,
    no_weights_to_begin_with,
    recipe_of,
    results_read,
    start_file,
)
from pipeline.jobs.folder import PROVISIONAL
from pipeline.project import Project
from pipeline.results.closure import Codebase
from pipeline.results.code import Code, read_code
from pipeline.results.documents import hashes_of, missing_deps
from pipeline.results.port import CodeHistory, ResultCache, StageFacts
from pipeline.stages.request import START
from pipeline.stages.table import DATASETS, PRETRAIN, STAGES, key_of, stage_of
from pipeline.submission.selection import Wanted, choose, survey
from pipeline.tables.place import place_of

TRIES = 3
IMPORTED = "imported"


@dataclass(frozen=True)
class Packed:
    """A bundle that was made.

    Attributes:
        path: The file.
        digest: Its name.
        runs: Names of its runs, in their order.
        ready: Names of the runs that were asked for and have results.
        packages: What its runs import besides the common packages.
    """

    path: Path
    digest: str
    runs: tuple[str, ...]
    ready: tuple[str, ...]
    packages: tuple[str, ...]


@dataclass(frozen=True)
class _State:
    """A suite at one moment."""

    code: Code
    params: Params
    facts: Mapping[str, StageFacts]


def pack(
    project: Project, wanted: Wanted, cache: ResultCache, history: CodeHistory, target: Path
) -> Packed:
    """Write a bundle of the runs that are asked for, and of what they need and has no result.

    Args:
        project: The project and the suite.
        wanted: Which runs.
        cache: Which results there are, and inputs.
        history: Names the commit.
        target: The file to write.

    Raises:
        UserError: A name is wrong, nothing is to be made, or data have not been packed yet.
    """
    state = _read(project, wanted, cache)
    runs = _to_be_made(state)
    asked = choose(state.params, wanted)
    ready = tuple(name for name in asked if name not in runs)
    if not runs:
        raise UserError(
            f"nothing to bundle: {', '.join(asked)} "
            f"{'has a result' if len(asked) == 1 else 'have results'}; dvc repro checks them out"
        )
    codebase = Codebase(state.code.files)
    with _staging(project) as staging:
        plans = tuple(_plan(project, state, name, runs, codebase) for name in runs)
        _lay_out(project, state, plans, cache, staging)
        entries: dict[str, Path | bytes] = {
            f"{CODE}/{path}": content for path, content in _code(state, plans, codebase).items()
        }
        files = {path: mark_bytes(content) for path, content in entries.items()
                 if isinstance(content, bytes)}  # fmt: skip
        files |= under(SUITE, mark_folder(staging))
        entries |= {
            f"{SUITE}/{path.relative_to(staging).as_posix()}": path
            for path in sorted(staging.rglob("*")) if path.is_file()
        }  # fmt: skip
        manifest = _manifest(project, state, plans, files, history)
        launcher = state.code.files[LAUNCHER]
        text = manifest.text().encode()
        write_archive(target, {"__main__.py": launcher, MANIFEST_FILE: text, **entries})
    target.chmod(target.stat().st_mode | stat.S_IXUSR)
    packages = {package for plan in plans for package in plan.packages}
    return Packed(target, manifest.digest, tuple(runs), ready, tuple(sorted(packages)))


def _read(project: Project, wanted: Wanted, cache: ResultCache) -> _State:
    """Read code and parameters before and after DVC is asked: what is frozen is what it saw.

    Raises:
        UserError: A name or a file is wrong, or files change all the time.
    """
    for _ in range(TRIES):
        code, text = read_code(project.root), project.params_file.read_bytes()
        params = load_params(project.params_file)
        facts = survey(project, params, wanted, cache)
        again = (read_code(project.root).digest, project.params_file.read_bytes())
        if again == (code.digest, text):
            return _State(code, params, facts)
    raise UserError(
        f"files in {project.root} keep changing while they are read; try again once they do not"
    )


def _to_be_made(state: _State) -> list[str]:
    """Return the runs that have no result, or need one that has none, in their order.

    Raises:
        UserError: A dataset has not been made yet: only this machine has what it comes from.
    """
    runs: list[str] = []
    for name, facts in state.facts.items():
        needs = set(facts.upstream.values()) & set(runs)
        if facts.outputs is None or needs:
            if stage_of(name) in DATASETS:
                raise UserError(f"{name} has no result, and a bundle carries packed data; "
                                f"run `dvc repro {name}` first")  # fmt: skip
            runs.append(name)
    return runs


def _plan(
    project: Project, state: _State, name: str, runs: list[str], codebase: Codebase
) -> RunPlan:
    stage, key, facts = stage_of(name), key_of(name), state.facts[name]
    recipe = recipe_of(state.params, stage.name, key)
    made = {path: maker for path, maker in facts.upstream.items() if maker in runs}
    known = facts.fingerprint if not made and facts.fingerprint is not None else None
    fingerprint = known or PROVISIONAL + facts.recipe
    inputs = (
        {IMPORTED: _imported_path(key, recipe)}
        if isinstance(recipe, ImportedRecipe)
        else results_read(stage, key, recipe)
    )
    if start_file(recipe) is not None:
        inputs = {**inputs, START: f"{START}/{key}"}  # the file, or what is in the folder
    hashes = hashes_of(facts.document["deps"])
    unknown = sorted({*missing_deps(facts.document), *made})
    digests = {path: str(hashed["md5"]) for path, hashed in hashes.items() if path not in made}
    digests |= {path: f"{fingerprint}.{number}" for number, path in enumerate(unknown)}
    return RunPlan(
        name=name, stage=stage.name, key=key, fingerprint=fingerprint, document=facts.document,
        recipe=to_plain(recipe), place=place_of(state.params, stage.name, key),
        resources=dataclasses.asdict(load_resources(project.cluster_file, stage.name, key)),
        inputs=inputs, makers={path: made[path] for path in inputs.values() if path in made},
        upstream={path: state.facts[maker].recipe for path, maker in facts.upstream.items()},
        digests=digests, code=stage.code_path(recipe),
        packages=packages_of(codebase, stage.module, _variant(stage.name, recipe)),
    )  # fmt: skip


def _variant(stage: str, recipe: object) -> str | None:
    """Return what a stage loads by name for a recipe."""
    field = STAGES[stage].variant
    return None if field is None else str(getattr(recipe, field))


def _imported_path(key: str, recipe: ImportedRecipe) -> str:
    path = Path(recipe.folder)
    return f"{IMPORTED}/{key}" if path.is_absolute() or ".." in path.parts else path.as_posix()


def _code(state: _State, plans: tuple[RunPlan, ...], codebase: Codebase) -> dict[str, bytes]:
    """Return the modules that the runs may load, and the texts that stand for their code."""
    recipes = [(plan.stage, recipe_of(state.params, plan.stage, plan.key)) for plan in plans]
    stages = {(STAGES[stage].module, _variant(stage, recipe)) for stage, recipe in recipes}
    texts = {plan.code: state.code.identities[plan.code].encode() for plan in plans}
    declared = {(module, None) for plan in plans for module in modules_in(plan.recipe)}
    return code_files(codebase, stages | declared) | texts


def _lay_out(
    project: Project, state: _State, plans: tuple[RunPlan, ...], cache: ResultCache, staging: Path
) -> None:
    """Put all inputs that there are into a folder, at their paths in the suite's."""
    hashes: dict[str, Mapping[str, Any]] = {}
    for plan in plans:
        facts = state.facts[plan.name]
        for role, path in plan.inputs.items():
            if role == IMPORTED:
                recipe = recipe_of(state.params, plan.stage, plan.key)
                found = find_inputs(project, plan.stage, plan.key, recipe)[IMPORTED]
                shutil.copytree(found, staging / path, dirs_exist_ok=True)
            elif path == f"{START}/{plan.key}":
                _copy_start(project, plan, recipe_of(state.params, plan.stage, plan.key), staging)
            elif path not in plan.makers:
                outputs = state.facts[facts.upstream[path]].outputs or {}
                hashes[path] = outputs[path]
        encoder = plan.inputs.get("encoder")
        if encoder is not None and encoder not in plan.makers:
            # which run made an encoder is asked of its metrics file
            metrics = str(PRETRAIN.metrics_path(plan.key))
            outputs = state.facts[facts.upstream[encoder]].outputs or {}
            hashes |= {metrics: outputs[metrics]} if metrics in outputs else {}
    cache.link(project.root, hashes, staging)


def _copy_start(project: Project, plan: RunPlan, recipe: object, staging: Path) -> None:
    """Put the weights that a run begins with into a folder, whatever they are called here."""
    place, target = project.suite / str(start_file(recipe)), staging / plan.inputs[START]
    if not place.exists():
        raise UserError(no_weights_to_begin_with(plan.key, place))
    if place.is_dir():
        shutil.copytree(place, target, dirs_exist_ok=True)
    else:
        target.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(place, target / place.name)


def _manifest(
    project: Project,
    state: _State,
    plans: tuple[RunPlan, ...],
    files: dict[str, Mark],
    history: CodeHistory,
) -> Manifest:
    return Manifest(
        suite=state.params.suite, folder=project.suite.relative_to(project.root).as_posix(),
        scale=state.params.scale, tags=history.tags(project.root), runs=plans,
        files=dict(sorted(files.items())),
    )  # fmt: skip


@contextmanager
def _staging(project: Project) -> Iterator[Path]:
    """Make a folder in the project's scratch, and remove it afterwards."""
    folder = project.scratch / f"bundle-{secrets.token_hex(4)}"
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
