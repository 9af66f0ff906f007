"""cluster.yaml: where stages run. Nothing in it changes a result or its identity."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError, create_model

from asl_core.recipes.optimisation import Resources
from pipeline.config import trackers
from pipeline.config.files import STRICT, FieldNames, Location, Problems, validate
from pipeline.config.job_resources import JobResources
from pipeline.config.schedulers import DEFAULT, SCHEDULERS, JobSettings, chosen, load_settings
from pipeline.config.yaml_files import read_yaml_if_any
from pipeline.errors import UserError
from pipeline.stages.table import STAGES

Resources.__pydantic_config__ = STRICT  # type: ignore[attr-defined]


_STAGES: dict[str, Any] = {name: (Resources, Resources()) for name in ("default", *STAGES)}
Local = create_model("Local", __config__=STRICT, **_STAGES)
"""Resources of the stages that run on this machine; `default` holds for all of them."""


class Cluster(BaseModel):
    """The whole file but for schedulers' sections, which are merged before they are checked."""

    model_config = STRICT

    local: Local = Local()  # type: ignore[valid-type]
    scheduler: str = DEFAULT
    """Where jobs go: a name of `SCHEDULERS`, or `module:function`."""
    tracker: str = trackers.DEFAULT
    """Who shows runs to people: a name of `TRACKERS`, or `module:function`."""


_CLUSTER: TypeAdapter[Cluster] = TypeAdapter(Cluster)
_SECTION: TypeAdapter[dict[str, dict[str, Any]]] = TypeAdapter(dict[str, dict[str, Any]])
_RESOURCES: TypeAdapter[Resources] = TypeAdapter(Resources)
_PROCESS = "resources"
"""In a scheduler's section: settings of the stage itself, over those of `local`."""


def load_resources(path: Path, stage: str) -> Resources:
    """Return the resources of a stage here: its own settings over `default` over the built-in ones.

    Raises:
        UserError: One line per problem of the file. A file that does not exist is no problem.
    """
    return validate(_RESOURCES, _local(_read(path).raw, stage))


@dataclasses.dataclass(frozen=True)
class JobRequest:
    """What a stage's jobs are to be.

    Attributes:
        scheduler: Who runs them: a name of `SCHEDULERS`, or `module:function`.
        asked: What they ask of it.
        resources: Of the stage in them: those of here, but for what the scheduler's section says.
    """

    scheduler: str
    asked: JobResources
    resources: Resources


def load_job_request(path: Path, stage: str) -> JobRequest:
    """Return what a stage's jobs are to be: the stage's own settings over those of `default`.

    Raises:
        UserError: One line per problem of the file. A file that does not exist is no problem.
    """
    found = _read(path)
    settings = found.settings
    fields = _merged(found.raw, settings.section, stage)
    process = {**_local(found.raw, stage), **fields.pop(_PROCESS, {})}
    asked = validate(_adapter(settings.resources), fields)
    process.setdefault("num_workers", asked.cpus - 1)  # one computes, the others load
    return JobRequest(found.scheduler, asked, validate(_RESOURCES, process))


def job_resources(scheduler: str, asked: Mapping[str, Any]) -> JobResources:
    """Return what a job asks of a scheduler, from the plain values that a record has of it.

    Raises:
        UserError: There is no such scheduler, or it understands something else by now.
    """
    try:
        return validate(_adapter(load_settings(scheduler).resources), asked)
    except ValueError as error:
        raise UserError(f"scheduler {scheduler}: {error}") from error


def load_scheduler_name(path: Path) -> str:
    """Return who runs jobs; whatever else is wrong with the file is no matter here.

    Raises:
        UserError: The file is not YAML, and the environment does not say it.
    """
    return chosen(lambda: read_yaml_if_any(path).get("scheduler"))


def load_tracker_name(path: Path) -> str:
    """Return who shows runs; whatever else is wrong with the file is no matter here.

    Raises:
        UserError: The file is not YAML.
    """
    named = read_yaml_if_any(path).get("tracker")
    return named if isinstance(named, str) else trackers.DEFAULT


@dataclasses.dataclass(frozen=True)
class _File:
    """The file, checked, and whose section holds."""

    raw: dict[str, Any]
    scheduler: str
    settings: JobSettings


def _read(path: Path) -> _File:
    """Read and check the whole file, so that no mistake waits for its stage to run.

    Raises:
        UserError: One line per problem.
    """
    raw: dict[str, Any] = read_yaml_if_any(path)
    problems = Problems(path)
    named = raw.get("scheduler")
    scheduler = chosen(lambda: named)
    # what the file names is a known section even where the environment names another one
    kinds = _kinds({*SCHEDULERS, named if isinstance(named, str) else DEFAULT, scheduler}, problems)
    problems.raise_if_any()
    settings = kinds[scheduler]
    known = {kind.section: kind.resources for kind in kinds.values()}
    known[settings.section] = settings.resources
    check = functools.partial(_collect, raw=raw, problems=problems, fields=_field_names(known))
    check(_CLUSTER, {name: part for name, part in raw.items() if name not in known}, ())
    for section in known:
        check(_SECTION, raw.get(section, {}), (section,))
    problems.raise_if_any()
    for section, declared in known.items():
        adapter = _adapter(declared)
        _check_entries(section, adapter, raw, check)
        problems.raise_if_any()
        for stage in STAGES:  # a stage's setting and one of `default` may not go together
            merged = _merged(raw, section, stage)
            merged.pop(_PROCESS, None)
            check(adapter, merged, (section, stage))
        problems.raise_if_any()
    return _File(raw, scheduler, settings)


def _check_entries(
    section: str, adapter: TypeAdapter[JobResources], raw: Mapping[str, Any],
    check: Callable[[TypeAdapter[Any], Any, Location], None],
) -> None:  # fmt: skip
    """Note what is wrong with the entries of a scheduler's section, each by itself."""
    for entry, settings in raw.get(section, {}).items():
        if entry not in Local.model_fields:
            check(TypeAdapter(Local), {entry: {}}, (section,))
            continue
        own = {**settings}
        process = own.pop(_PROCESS, {})
        check(adapter, own, (section, entry))
        check(_RESOURCES, process, (section, entry, _PROCESS))


@functools.cache
def _adapter(declared: type[JobResources]) -> TypeAdapter[JobResources]:
    return TypeAdapter(declared)


def _kinds(names: Iterable[str], problems: Problems) -> dict[str, JobSettings]:
    """Import schedulers; note which cannot be had."""
    found: dict[str, JobSettings] = {}
    for name in sorted(names):
        try:
            found[name] = load_settings(name)
        except ValueError as error:
            problems.add(("scheduler",), str(error))
    return found


def _collect(
    adapter: TypeAdapter[Any], part: Any, at: Location, *, raw: Any, problems: Problems,
    fields: FieldNames,
) -> None:  # fmt: skip
    """Note what is wrong with a part of the file."""
    try:
        validate(adapter, part)
    except ValidationError as error:
        problems.add_all(error, raw, fields, at)


def _local(raw: Mapping[str, Any], stage: str) -> dict[str, Any]:
    local = raw.get("local", {})
    return {**local.get("default", {}), **local.get(stage, {})}


def _merged(raw: Mapping[str, Any], section: str, stage: str) -> dict[str, Any]:
    """Return the settings of a stage's job: single keys of mappings, other settings whole."""
    settings = raw.get(section, {})
    merged, own = {**settings.get("default", {})}, settings.get(stage, {})
    for name, value in own.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = {**merged[name], **value} if both else value
    return merged


def _field_names(known: Mapping[str, type[JobResources]]) -> FieldNames:
    """Return who knows the valid keys of the mapping at a location of cluster.yaml."""

    def of(location: Location) -> list[str]:
        if not location:
            return [*Cluster.model_fields, *known]
        if len(location) == 1:
            return list(Local.model_fields)
        if location[0] in known and len(location) == 2:
            declared = known[str(location[0])]
            return [*(field.name for field in dataclasses.fields(declared)), _PROCESS]
        return [field.name for field in dataclasses.fields(Resources)]

    return FieldNames(of)
