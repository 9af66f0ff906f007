"""cluster.yaml: where stages run. Nothing in it changes a result or its identity."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, TypeAdapter, ValidationError

from asl_core.recipes.optimisation import Resources
from pipeline.config.files import STRICT, FieldNames, Problems, read_yaml, validate

STAGES = (
    "prepare", "pretrain", "linprobe", "finetune", "detect", "segment", "analyze", "report",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlurmResources:
    """What a job asks of Slurm. Nothing here changes a result or is part of its identity."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    nodes: int = 1
    tasks_per_node: int = 1
    gpus: int = 0
    """Per node."""
    cpus: int = 1
    """Per task."""
    memory: str | None = None
    time: str | None = None
    constraint: str | None = None
    setup: tuple[str, ...] = ()
    env: dict[str, str] = dataclasses.field(default_factory=dict)
    max_restarts: int = 20
    """After preemption or a time limit; one more is a failure."""
    max_queued: int = 1000
    """Jobs of this user that may be in the queue at once."""
    requeue: Literal["allowed", "resubmit"] = "allowed"
    """allowed: an interrupted job goes back into the queue itself; resubmit: as a new job."""


SlurmResources.__pydantic_config__ = STRICT  # type: ignore[attr-defined]
Resources.__pydantic_config__ = STRICT  # type: ignore[attr-defined]


class Local(BaseModel):
    """Resources of the stages that run on this machine; `default` holds for all of them."""

    model_config = STRICT

    default: Resources = Resources()
    prepare: Resources = Resources()
    pretrain: Resources = Resources()
    linprobe: Resources = Resources()
    finetune: Resources = Resources()
    detect: Resources = Resources()
    segment: Resources = Resources()
    analyze: Resources = Resources()
    report: Resources = Resources()


class Cluster(BaseModel):
    """The whole file."""

    model_config = STRICT

    local: Local = Local()
    slurm: dict[str, dict[str, Any]] = {}


_ADAPTER: TypeAdapter[Cluster] = TypeAdapter(Cluster)


def load_resources(path: Path, stage: str) -> Resources:
    """Return the resources of a stage: its own settings over `default` over the built-in ones.

    Raises:
        UserError: One line per problem of the file. A file that does not exist is no problem.
    """
    raw: dict[str, Any] = read_yaml(path) if path.is_file() else {}
    problems = Problems(path)
    try:
        validate(_ADAPTER, raw)
    except ValidationError as error:
        problems.add_all(error, raw, FieldNames(_fields_at))
        problems.raise_if_any()
    local = raw.get("local", {})
    settings = {**local.get("default", {}), **local.get(stage, {})}
    return validate(TypeAdapter(Resources), settings)


def load_slurm(path: Path, stage: str) -> SlurmResources:
    """Return what a stage's jobs ask of Slurm: its own settings over `default`."""
    raw: dict[str, Any] = read_yaml(path) if path.is_file() else {}
    slurm = raw.get("slurm", {})
    settings = {**slurm.get("default", {}), **slurm.get(stage, {})}
    return validate(TypeAdapter(SlurmResources), settings)


def _fields_at(location: tuple[str | int, ...]) -> list[str]:
    """Return the valid keys of the mapping at a location of cluster.yaml."""
    if not location:
        return list(Cluster.model_fields)
    if len(location) == 1:
        return list(Local.model_fields)
    return [field.name for field in dataclasses.fields(Resources)]
