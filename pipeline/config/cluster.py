"""cluster.yaml: where stages run. Nothing in it changes a result or its identity."""

import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError, create_model

from asl_core.recipes.optimisation import Resources
from pipeline.config import trackers
from pipeline.config.container import Container
from pipeline.config.cost_factors import CostFactors
from pipeline.config.files import STRICT, FieldNames, Location, Problems, validate
from pipeline.config.job_resources import JobResources
from pipeline.config.overrides import (
    EXPERIMENTS,
    Override,
    layers,
    merge,
    overrides,
    own_settings,
)
from pipeline.config.schedulers import DEFAULT, SCHEDULERS, JobSettings, chosen, load_settings
from pipeline.config.suggest import shown
from pipeline.config.yaml_files import read_yaml_if_any
from pipeline.errors import UserError
from pipeline.stages.table import STAGES

Resources.__pydantic_config__ = STRICT  # type: ignore[attr-defined]


_STAGES: dict[str, Any] = {name: (Resources, Resources()) for name in ("default", *STAGES)}
Local = create_model("Local", __config__=STRICT, **_STAGES)
"""Resources of the stages that run on this machine; `default` holds for all of them."""

_URL = re.compile(r"https?://\S+|\$\{?\w+\}?\S*")


class Notify(BaseModel):
    """Who is told that the jobs of a submission have ended, or that some need somebody."""

    model_config = STRICT

    command: str | None = None
    """A line of shell; it gets the message on its standard input, as JSON."""
    webhook: str | None = None
    """A URL that gets the same JSON as a POST; `$NAME` in it is read from the environment."""


class Cluster(BaseModel):
    """The whole file but for the sections with settings of stages, which are merged first."""

    model_config = STRICT

    scheduler: str = DEFAULT
    """Where jobs go: a name of `SCHEDULERS`, or `module:function`."""
    tracker: str = trackers.DEFAULT
    """Who shows runs to people: a name of `TRACKERS`, or `module:function`."""
    notify: Notify = Notify()
    cost: CostFactors = CostFactors()


_CLUSTER: TypeAdapter[Cluster] = TypeAdapter(Cluster)
_SECTION: TypeAdapter[dict[str, dict[str, Any]]] = TypeAdapter(dict[str, dict[str, Any]])
_RESOURCES: TypeAdapter[Resources] = TypeAdapter(Resources)
_LOCAL = "local"
_LOCAL_FIELDS = frozenset(field.name for field in dataclasses.fields(Resources))
_CONTAINER = "container"
_PROCESS = "resources"
"""In a scheduler's section: settings of the stage itself, over those of `local`."""
FOLLOW_UP = "follow_up"
"""In a scheduler's section: what the job asks for that looks after the others."""
FOLLOW_UP_MINUTES = 30


def load_resources(path: Path, stage: str, key: str | None = None) -> Resources:
    """Return the resources of a stage here: those of its experiment over its own over `default`.

    Args:
        path: cluster.yaml.
        stage: `pretrain`.
        key: The run's; None: of no run in particular.

    Raises:
        UserError: One line per problem of the file. A file that does not exist is no problem.
    """
    return read_cluster(path).resources(stage, key)


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


def load_job_request(path: Path, stage: str, key: str | None = None) -> JobRequest:
    """Return what a stage's jobs are to be: its experiment's settings over its own over `default`.

    Args:
        path: cluster.yaml.
        stage: `pretrain`.
        key: The run's; None: of no run in particular.

    Raises:
        UserError: One line per problem of the file. A file that does not exist is no problem.
    """
    return read_cluster(path).job_request(stage, key)


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
class ClusterFile:
    """The file, checked, and whose section holds.

    Attributes:
        path: Of the file.
        raw: What it says.
        scheduler: Who runs jobs.
        settings: What its section may say.
    """

    path: Path
    raw: dict[str, Any]
    scheduler: str
    settings: JobSettings

    def resources(self, stage: str, key: str | None = None) -> Resources:
        """Return the resources of a run here.

        Raises:
            UserError: What several patterns set does not go together.
        """
        return self._checked(_RESOURCES, self._local(stage, key), (_LOCAL, stage), key)

    def job_request(self, stage: str, key: str | None = None) -> JobRequest:
        """Return what a run's job is to be.

        Raises:
            UserError: What several patterns set does not go together.
        """
        declared, section = self.settings.resources, self.settings.section
        fields = merge(layers(self.raw.get(section, {}), stage, key, _fields(declared)))
        process = {**self._local(stage, key), **fields.pop(_PROCESS, {})}
        place = (section, stage)
        asked = self._checked(_adapter(declared), declared.fields_of(fields), place, key)
        process.setdefault("num_workers", asked.cpus - 1)  # one computes, the others load
        return JobRequest(
            self.scheduler, asked, self._checked(_RESOURCES, process, (*place, _PROCESS), key)
        )

    def follow_up_request(self) -> JobResources:
        """Return what the job asks for that looks after the others: little, where stages go."""
        declared, section = self.settings.resources, self.settings.section
        return validate(_adapter(declared), _follow_up(self.raw.get(section, {}), declared))

    @property
    def notify(self) -> Notify:
        """Who is told how it ended."""
        return Notify(**self.raw.get("notify", {}))

    @property
    def cost(self) -> CostFactors:
        """What an hour and a kilowatt-hour stand for."""
        return CostFactors(**self.raw.get("cost") or {})

    @property
    def overrides(self) -> list[tuple[str, Override]]:
        """What is set for experiments, with the section in which it is."""
        section = self.settings.section
        here = overrides(self.raw.get(_LOCAL, {}), _LOCAL_FIELDS)
        jobs = overrides(self.raw.get(section, {}), _fields(self.settings.resources))
        return [*((_LOCAL, each) for each in here), *((section, each) for each in jobs)]

    def _local(self, stage: str, key: str | None) -> dict[str, Any]:
        return merge(layers(self.raw.get(_LOCAL, {}), stage, key, _LOCAL_FIELDS))

    def _checked(
        self, adapter: TypeAdapter[Any], fields: Any, place: Location, key: str | None
    ) -> Any:
        try:
            return validate(adapter, fields)
        except ValidationError as error:
            problems = Problems(self.path)
            problems.add_all(error, self.raw, _field_names({}), place)
            of = "" if key is None else f" (for {key}, by several entries)"
            raise UserError("\n".join(f"{line}{of}" for line in problems.lines)) from error


def read_cluster(path: Path) -> ClusterFile:
    """Read and check the whole file, so that no mistake waits for its stage to run.

    Raises:
        UserError: One line per problem. A file that does not exist is no problem.
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
    file = _Checks(raw, problems, _field_names(known))
    plain = {name: part for name, part in raw.items() if name not in (_LOCAL, *known)}
    file.check(_CLUSTER, plain, ())
    file.check_webhook()
    for section in (_LOCAL, *known):
        file.check(_SECTION, raw.get(section, {}), (section,))
    problems.raise_if_any()
    file.check_section(_LOCAL, None)
    for section, declared in known.items():
        file.check_section(section, declared)
    return ClusterFile(path, raw, scheduler, settings)


@dataclasses.dataclass(frozen=True)
class _Checks:
    """Collects what is wrong with the file.

    Attributes:
        raw: What it says.
        problems: Found so far.
        fields: Names what would have been valid.
    """

    raw: dict[str, Any]
    problems: Problems
    fields: FieldNames

    def check(self, adapter: TypeAdapter[Any], part: Any, at: Location) -> None:
        """Note what is wrong with a part of the file."""
        try:
            validate(adapter, part)
        except ValidationError as error:
            self.problems.add_all(error, self.raw, self.fields, at)

    def check_webhook(self) -> None:
        """Note a webhook that is no URL."""
        notify = self.raw.get("notify")
        url = notify.get("webhook") if isinstance(notify, Mapping) else None
        if isinstance(url, str) and not _URL.fullmatch(url):
            text = f"got {shown(url)}, expected https://... or $NAME of the environment"
            self.problems.add(("notify", "webhook"), text)

    def check_section(self, section: str, declared: type[JobResources] | None) -> None:
        """Note what is wrong with each entry by itself, else with what stages get of them.

        Args:
            section: Of the file.
            declared: What stages' settings become; None: `Resources`.
        """
        entries = self.raw.get(section, {})
        names = _LOCAL_FIELDS if declared is None else _fields(declared)
        extra = {EXPERIMENTS} if declared is None else {EXPERIMENTS, FOLLOW_UP}
        for entry, settings in entries.items():
            if entry == EXPERIMENTS:
                self.check(_SECTION, settings, (section, entry))
            elif entry in Local.model_fields or entry in extra:
                own = own_settings(settings, names) if entry in STAGES else settings
                self._check_settings(own, (section, entry), declared)
            else:
                self.check(TypeAdapter(Local), {entry: {}}, (section,))
        self.problems.raise_if_any()
        special = list(overrides(entries, names))
        for each in special:
            self._check_settings(each.settings, (section, *each.place), declared)
        self.problems.raise_if_any()
        # a stage's setting and one of `default` may not go together
        for stage in STAGES:
            merged = merge(layers(entries, stage, None, names))
            self._check_settings(merged, (section, stage), declared)
        self.problems.raise_if_any()
        for each in special:
            for stage in each.stages:
                merged = merge([*layers(entries, stage, None, names), each.settings])
                self._check_settings(merged, (section, *each.place), declared)
        if declared is not None and not self.problems.lines:
            self.check(_adapter(declared), _follow_up(entries, declared), (section, FOLLOW_UP))
        self.problems.raise_if_any()

    def _check_settings(
        self, settings: Mapping[str, Any], at: Location, declared: type[JobResources] | None
    ) -> None:
        if declared is None:
            self.check(_RESOURCES, dict(settings), at)
            return
        own = {**settings}
        process = own.pop(_PROCESS, {})
        self.check(_adapter(declared), declared.fields_of(own), at)
        self.check(_RESOURCES, process, (*at, _PROCESS))


def _follow_up(section: Mapping[str, Any], declared: type[JobResources]) -> dict[str, Any]:
    """Return what the job asks for that looks after the others."""
    default = {
        name: value
        for name, value in section.get("default", {}).items()
        if name not in (_PROCESS, *declared.of_work)
    }
    own = {k: value for k, value in section.get(FOLLOW_UP, {}).items() if k != _PROCESS}
    return declared.fields_of(merge([default, {"time": FOLLOW_UP_MINUTES}, own]))


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


def _fields(declared: type[JobResources]) -> frozenset[str]:
    """Return the names of a job's settings in cluster.yaml."""
    return frozenset({_PROCESS, *(field.name for field in dataclasses.fields(declared))})


def _field_names(known: Mapping[str, type[JobResources]]) -> FieldNames:
    """Return who knows the valid keys of the mapping at a location of cluster.yaml."""

    def of(location: Location) -> Sequence[str]:
        if not location:
            return [*Cluster.model_fields, _LOCAL, *known]
        section = str(location[0])
        if section == "notify":
            return list(Notify.model_fields)
        if section == "cost":
            return list(CostFactors.model_fields)
        if len(location) == 1:
            of_jobs = [FOLLOW_UP] if section in known else []
            return [*Local.model_fields, EXPERIMENTS, *of_jobs]
        if location[-1] == _CONTAINER:
            return [field.name for field in dataclasses.fields(Container)]
        if section in known and location[-1] != _PROCESS:
            names = (field.name for field in dataclasses.fields(known[section]))
            return [*names, _PROCESS]
        return [field.name for field in dataclasses.fields(Resources)]

    return FieldNames(of)
