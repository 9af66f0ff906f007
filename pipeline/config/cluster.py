"""cluster.yaml: where stages run. Nothing in it changes a result or its identity."""

import dataclasses
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, TypeAdapter, ValidationError, create_model

from asl_core.recipes.optimisation import Resources
from pipeline.config.files import STRICT, FieldNames, Location, Problems, each, read_yaml, validate
from pipeline.stages.table import STAGES

WARNING_SECONDS = 120
"""Long enough to finish a step and write a checkpoint; short limits get a quarter of themselves."""

OWN_OPTIONS = frozenset(
    {
        "array", "chdir", "comment", "dependency", "error", "job-name", "kill-on-invalid-dep",
        "no-requeue", "open-mode", "output", "parsable", "requeue", "signal", "wait", "wrap",
        # these have a setting of their own
        "account", "constraint", "cpus-per-task", "gpus-per-node", "mem", "nodes", "ntasks",
        "ntasks-per-node", "partition", "qos", "time",
    }
)  # fmt: skip
"""Options of sbatch that `options` must not set."""

_MEMORY = re.compile(r"\d+[KMGT]?")
_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<clock>\d+(?::\d{1,2}){0,2})")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlurmResources:
    """What a job asks of Slurm. Nothing here changes a result or is part of its identity."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    nodes: int = 1
    tasks_per_node: int = 1
    """Processes on each node; with GPUs one for each of them."""
    gpus: int = 0
    """Per node."""
    cpus: int = 1
    """Per task: the process and its loader workers."""
    memory: str | None = None
    """Per node, as sbatch takes it: `64G`; absent: what the partition gives."""
    time: str | int | None = None
    """Limit of one attempt: minutes, or as sbatch takes it (`24:00:00`, `2-12`); absent: the
    partition's. A run that needs longer goes on after it, from its checkpoint."""
    warning: int | None = None
    """Seconds before the limit at which the job is told to save its work. Slurm may tell it a
    minute earlier. Absent: a quarter of the limit, at most `WARNING_SECONDS`."""
    constraint: str | None = None
    setup: tuple[str, ...] = ()
    """Lines of shell before the stage, on the first node: `module load ...`. The first that fails
    ends the job (`set -e`)."""
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Environment variables of the stage."""
    options: Mapping[str, str | int | bool] = dataclasses.field(default_factory=dict)
    """Any other option of sbatch by its long name: {reservation: asl, exclusive: true}."""
    max_restarts: int = 20
    """After preemption or a time limit; one more is a failure."""
    max_queued: int = 1000
    """A stage is held back while the queue holds so many jobs of this user that asl-pipe submitted,
    those of all stages and projects together."""
    requeue: Literal["allowed", "resubmit"] = "allowed"
    """allowed: an interrupted job goes back into the queue itself; resubmit: as a new job."""

    def __post_init__(self) -> None:
        """Check what types do not say.

        Raises:
            ValueError: Names the setting, the value and what is expected.
        """
        for name, least in (("nodes", 1), ("tasks_per_node", 1), ("gpus", 0), ("cpus", 1),
                            ("warning", 1), ("max_restarts", 0), ("max_queued", 1)):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"got {name} {value}, expected {least} or more")
        if self.gpus and self.tasks_per_node > self.gpus:
            raise ValueError(
                f"got tasks_per_node {self.tasks_per_node} on {self.gpus} GPUs a node, expected "
                "one GPU or more for each task"
            )
        if self.memory is not None and not _MEMORY.fullmatch(self.memory):
            raise ValueError(f"got memory {self.memory!r}, expected a size such as 64G")
        if self.time is not None and not _TIME.fullmatch(str(self.time)):
            raise ValueError(f"got time {self.time!r}, expected minutes, HH:MM:SS or D-HH:MM:SS")
        if taken := sorted(OWN_OPTIONS & {name.replace("_", "-") for name in self.options}):
            raise ValueError(
                f"got {', '.join(taken)} in options: it has a setting of its own, or the pipeline "
                "needs it"
            )
        for name in self.env:
            if not name.isidentifier():
                raise ValueError(f"got {name!r} in env, expected the name of a variable")

    @property
    def time_seconds(self) -> int | None:
        """The time limit; None for the partition's."""
        return None if self.time is None else _seconds(str(self.time))

    @property
    def warning_seconds(self) -> int:
        """How long before the time limit the job is told to save its work."""
        if self.warning is not None:
            return self.warning
        limit = self.time_seconds
        return WARNING_SECONDS if limit is None else min(WARNING_SECONDS, max(1, limit // 4))

    def setup_lines(self) -> tuple[str, ...]:
        """Return the lines of shell before the stage: variables first, then `setup`."""
        exports = (f"export {name}={shlex.quote(value)}" for name, value in self.env.items())
        return (*exports, *self.setup)


def _seconds(limit: str) -> int:
    """Return a time limit of sbatch in seconds: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S."""
    match = _TIME.fullmatch(limit)
    if match is None:
        raise ValueError(f"got time {limit!r}")
    parts = [int(part) for part in match["clock"].split(":")]
    if match["days"] is not None:
        hours, minutes, seconds = (*parts, 0, 0)[:3]
        return ((int(match["days"]) * 24 + hours) * 60 + minutes) * 60 + seconds
    if len(parts) == 1:
        return parts[0] * 60
    total = 0
    for part in parts:
        total = total * 60 + part
    return total


for _declared in (Resources, SlurmResources):
    _declared.__pydantic_config__ = STRICT  # type: ignore[attr-defined]


_STAGES: dict[str, Any] = {name: (Resources, Resources()) for name in ("default", *STAGES)}
Local = create_model("Local", __config__=STRICT, **_STAGES)
"""Resources of the stages that run on this machine; `default` holds for all of them."""


class Cluster(BaseModel):
    """The whole file but for the sections of `slurm`, which are merged before they are checked."""

    model_config = STRICT

    local: Local = Local()  # type: ignore[valid-type]
    slurm: dict[str, dict[str, Any]] = {}


_CLUSTER: TypeAdapter[Cluster] = TypeAdapter(Cluster)
_RESOURCES: TypeAdapter[Resources] = TypeAdapter(Resources)
_SLURM: TypeAdapter[SlurmResources] = TypeAdapter(SlurmResources)
_PROCESS = "resources"
"""In a section of `slurm`: settings of the stage itself, over those of `local`."""
_MERGED = ("env", "options", _PROCESS)
"""Settings of which a stage changes single keys."""


def load_resources(path: Path, stage: str) -> Resources:
    """Return the resources of a stage here: its own settings over `default` over the built-in ones.

    Raises:
        UserError: One line per problem of the file. A file that does not exist is no problem.
    """
    local = _read(path).get("local", {})
    return validate(_RESOURCES, {**local.get("default", {}), **local.get(stage, {})})


def load_job_resources(path: Path, stage: str) -> Resources:
    """Return the resources of a stage in a job: those of here, overridden by `slurm`.

    Raises:
        UserError: One line per problem of the file.
    """
    raw = _read(path)
    local = raw.get("local", {})
    slurm = _settings(raw, stage).get(_PROCESS, {})
    return validate(_RESOURCES, {**local.get("default", {}), **local.get(stage, {}), **slurm})


def load_slurm(path: Path, stage: str) -> SlurmResources:
    """Return what a stage's job asks of Slurm: its own settings over `default`.

    Raises:
        UserError: One line per problem of the file. A file that does not exist is no problem.
    """
    settings = _settings(_read(path), stage)
    settings.pop(_PROCESS, None)
    return validate(_SLURM, settings)


def _read(path: Path) -> dict[str, Any]:
    """Read and check the whole file, so that no mistake waits for its stage to run.

    Raises:
        UserError: One line per problem.
    """
    raw: dict[str, Any] = read_yaml(path) if path.is_file() else {}
    problems = Problems(path)
    fields = FieldNames(_fields_at)
    _collect(_CLUSTER, raw, (), raw, problems, fields)
    problems.raise_if_any()
    for section, settings in each(raw.get("slurm")):
        if section not in Local.model_fields:
            _collect(TypeAdapter(Local), {section: {}}, ("slurm",), raw, problems, fields)
            continue
        own = {**settings}
        process = own.pop(_PROCESS, {})
        _collect(_SLURM, own, ("slurm", section), raw, problems, fields)
        _collect(_RESOURCES, process, ("slurm", section, _PROCESS), raw, problems, fields)
    problems.raise_if_any()
    for stage in STAGES:  # a stage's setting and one of `default` may not go together
        settings = _settings(raw, stage)
        settings.pop(_PROCESS, None)
        _collect(_SLURM, settings, ("slurm", stage), raw, problems, fields)
    problems.raise_if_any()
    return raw


def _collect(
    adapter: TypeAdapter[Any], part: Any, at: Location, raw: Any, problems: Problems,
    fields: FieldNames,
) -> None:  # fmt: skip
    """Note what is wrong with a part of the file."""
    try:
        validate(adapter, part)
    except ValidationError as error:
        problems.add_all(error, raw, fields, at)


def _settings(raw: Mapping[str, Any], stage: str) -> dict[str, Any]:
    """Return the settings of a stage's job: single keys of mappings, other settings whole."""
    slurm = raw.get("slurm", {})
    default, own = slurm.get("default", {}), slurm.get(stage, {})
    settings = {**default, **own}
    for name in _MERGED:
        if name in settings:
            settings[name] = {**default.get(name, {}), **own.get(name, {})}
    return settings


def _fields_at(location: Location) -> list[str]:
    """Return the valid keys of the mapping at a location of cluster.yaml."""
    if not location:
        return list(Cluster.model_fields)
    if len(location) == 1:
        return list(Local.model_fields)
    if location[0] == "slurm" and len(location) == 2:
        return [*(field.name for field in dataclasses.fields(SlurmResources)), _PROCESS]
    return [field.name for field in dataclasses.fields(Resources)]
