"""Keep a result across a refactor: show that the new code computes the same, and file it again.

What trains is replayed: its first steps are computed once more under the present code and compared
with the witness in its journal, bit for bit. From the stored weights all metrics are evaluated
again, and what later stages read is written again; both must be equal exactly. Writes one entry of
DVC's run-cache and the file of vouchings, and nothing unless all of it is equal.
"""

import dataclasses
import getpass
import importlib
import logging
import socket
import time
import traceback
from collections.abc import Iterable
from dataclasses import dataclass

from asl_core.engine.witness import Circumstances, read_witness
from asl_core.errors import AslCoreError
from asl_core.recipes.catalogue import NOT_TRAINED
from asl_core.recipes.optimisation import Resources
from asl_core.wording import counted
from pipeline.config.cluster import load_resources
from pipeline.config.params import load_params
from pipeline.errors import AslPipeError, UserError
from pipeline.execution.compute import set_threads
from pipeline.execution.gpus import find_gpus
from pipeline.execution.inputs import find_inputs, find_stage, recipe_of
from pipeline.execution.recompute import NotEqualError, evaluate_again, replay
from pipeline.jobs.journal import read_records
from pipeline.project import Project
from pipeline.results.closure import changed_modules
from pipeline.results.code import packages_folder
from pipeline.results.documents import Document, code_of, differences, hashes_of
from pipeline.results.port import ResultCache, StageFacts
from pipeline.results.running_code import check_loaded_code, check_running_code
from pipeline.results.sources import refresh_sources
from pipeline.results.vouchings import Vouching, add_vouching
from pipeline.stages.table import MEASURED, Stage

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Stale:
    """A result whose code has changed, and nothing else.

    Attributes:
        stage: Its stage.
        key: Its entry of params.yaml.
        facts: What DVC knows of it, under the present code.
        locked: What dvc.lock has of it.
    """

    stage: Stage
    key: str
    facts: StageFacts
    locked: Document

    @property
    def name(self) -> str:
        return self.facts.name


def vouch(project: Project, stage_name: str, key: str, cache: ResultCache) -> Vouching | None:
    """Show that the current code computes the same result as the code it was made with; file it.

    Args:
        project: The project and the suite.
        stage_name: `pretrain`.
        key: `asl`.
        cache: Where results are.

    Returns:
        What was vouched for; None where the result is current as it is.

    Raises:
        UserError: There is no result, or more than its code has changed, or what it was made from
            or left is not there as it was.
        NotEqualError: The present code makes something else.
    """
    if find_stage(stage_name) not in MEASURED:
        raise UserError(
            f"{stage_name} has no numbers to compare; run dvc repro: if its output is unchanged, "
            "nothing else becomes stale"
        )
    stale = _find_stale(project, find_stage(stage_name), key, cache)
    if stale is None:
        return None
    stage = stale.stage
    recipe = recipe_of(load_params(project.params_file), stage_name, key)
    _check_stored(project, stale, cache)
    details = stage.details(project.suite, key)
    records = read_records(details / "journal")
    witness = read_witness((record.kind, record.body) for record in records)
    trains = stage.trains and not isinstance(recipe, tuple(NOT_TRAINED.values()))
    if trains and not (witness.losses and witness.tensors and witness.circumstances):
        raise UserError(
            f"{stale.name}: its journal has no witness of its first steps; run `dvc repro "
            f"{stale.name}`"
        )
    resources = load_resources(project.cluster_file, stage_name, key)
    if trains:
        resources = _as_it_was(resources, witness.circumstances, stale.name)
    set_threads(resources, find_gpus())  # before torch is loaded
    inputs = find_inputs(project, stage_name, key, recipe)
    try:
        module = importlib.import_module(stage.module)
        code = (project.suite / code_of(stale.facts.document)[0]).read_text(encoding="utf-8")
        check_loaded_code(code, packages_folder(project.suite))
        steps = 0
        if trains:
            steps = replay(project, stage, key, module.run, recipe, inputs, resources, witness)
        evaluated = evaluate_again(
            project, stage, key, module.reevaluate, recipe, inputs, resources
        )
        check_running_code(code, packages_folder(project.suite))
    except (AslPipeError, AslCoreError):
        raise
    except Exception as error:  # whatever the code that is being looked at raises
        where = traceback.extract_tb(error.__traceback__)[-1]
        raise NotEqualError(
            f"{stale.name}: the current code fails: {type(error).__name__}: {error} "
            f"({where.filename}:{where.lineno})"
        ) from error
    vouching = _describe(project, stale, cache, steps, evaluated, resources)
    # first what says so: a result never stands for other code without it
    add_vouching(project.suite / str(stage.metrics_path(key)), vouching)
    cache.file_again(project.suite, stale.facts.document, hashes_of(stale.locked["outs"]))
    return vouching


def _find_stale(project: Project, stage: Stage, key: str, cache: ResultCache) -> _Stale | None:
    params = load_params(project.params_file)
    recipe_of(params, stage.name, key)
    refresh_sources(project, params.datasets, cache)
    name = stage.run_name(key)
    survey = cache.survey(project.suite, [name])  # of its inputs too
    facts = survey[name]
    if facts.outputs is not None:
        return None
    if facts.locked is None:
        raise UserError(f"{name} has no result in dvc.lock; run `dvc repro {name}`")
    if facts.fingerprint is None:
        makers = sorted(set(facts.upstream.values()))
        stale = ", ".join(each for each in makers if survey[each].outputs is None)
        raise UserError(f"{name}: first vouch for, pull or run its inputs: {stale}")
    code = code_of(facts.document)[0]
    others = [text for text in differences(facts.locked, facts.document) if text != code]
    if others:
        raise UserError(
            f"{name}: more than its code has changed: {', '.join(others)}; run `dvc repro {name}`"
        )
    if cache.identify(project.suite, name).fingerprint != facts.fingerprint:
        raise UserError(
            f"{name}: its inputs in the workspace differ from dvc.lock; run dvc checkout"
        )
    return _Stale(stage, key, facts, facts.locked)


def _check_stored(project: Project, stale: _Stale, cache: ResultCache) -> None:
    """Make sure that what the run left is what dvc.lock says, its journal above all."""
    for path, hashed in hashes_of(stale.locked["outs"]).items():
        found = cache.digest(project.root, project.suite / path)
        if found is None:
            raise UserError(f"{stale.name}: {path} is missing; run dvc checkout")
        if found != hashed["md5"]:
            tool = "git" if path == stale.stage.metrics_path(stale.key) else "dvc"
            raise UserError(
                f"{stale.name}: {path} has changed: dvc.lock says {hashed['md5']}, found {found}; "
                f"run {tool} checkout"
            )


def _as_it_was(
    resources: Resources, circumstances: tuple[Circumstances, ...], name: str
) -> Resources:
    """Return resources under which sums are rounded as they were."""
    kinds = {dataclasses.replace(each, after_step=0, total_steps=0) for each in circumstances}
    if len(kinds) > 1:
        raise UserError(
            f"{name}: its first steps ran under changing circumstances, which a replay cannot "
            "reproduce; run dvc repro"
        )
    was = circumstances[0]
    if was.processes > 1:
        raise UserError(
            f"{name}: it was computed by {was.processes} processes, whose sums one process "
            "rounds differently; run dvc repro"
        )
    return dataclasses.replace(
        resources, device=was.device, threads=was.threads, compile=was.compiled,
        cuda_graphs=was.compiled and resources.cuda_graphs, micro_batch_size=was.micro_batch_size,
    )  # fmt: skip


def _describe(
    project: Project,
    stale: _Stale,
    cache: ResultCache,
    steps: int,
    evaluated: Iterable[str],
    resources: Resources,
) -> Vouching:
    torch = importlib.import_module("torch")
    path, new_code = code_of(stale.facts.document)
    _, old_code = code_of(stale.locked)
    old_text = cache.read(project.root, old_code)
    new_text = (project.suite / path).read_text(encoding="utf-8")
    changed = ("unknown",) if old_text is None else changed_modules(old_text, new_text)
    device = "cpu" if resources.device == "auto" else resources.device
    return Vouching(
        made_under=cache.key(stale.locked), filed_under=stale.facts.fingerprint or "",
        who=f"{getpass.getuser()}@{socket.gethostname()}",
        when=time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        steps=steps, evaluated=tuple(evaluated),
        device=f"{device}, {counted(torch.get_num_threads(), 'thread')}, torch {torch.__version__}",
        old_code=old_code, new_code=new_code, changed=tuple(changed),
    )  # fmt: skip
