"""What a job asks of Slurm: section `slurm` of cluster.yaml."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pipeline.config.job_resources import JobResources

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

_TYPED = re.compile(r"(?P<kind>[A-Za-z][\w.-]*):(?P<count>\d+)")


@dataclass(frozen=True, kw_only=True)
class SlurmResources(JobResources):
    """What a job asks of Slurm.

    Memory and time are handed to sbatch as they are; what is absent the partition decides. Slurm
    may warn of a time limit a minute earlier than it was asked to.
    """

    has_pyxis: ClassVar[bool] = True

    partition: str | None = None
    """One, or several of which the job gets the first that can start it: [gpu, long], or
    gpu,long."""
    gpu_type: str | None = None
    """Kind of GPU by the cluster's name for it, as sinfo -o %G shows it; gpus: "a100:4" says both.
    Other generic resources go into `options`: {gres: "nvme:1"}."""
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    options: Mapping[str, str | int | bool] = field(default_factory=dict)
    """Any other option of sbatch by its long name: {reservation: asl, exclusive: true}."""

    @classmethod
    def fields_of(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return settings as fields: `a100:4` apart, a list of partitions as sbatch has it."""
        fields = dict(settings)
        gpus, partition = fields.get("gpus"), fields.get("partition")
        typed = _TYPED.fullmatch(gpus) if isinstance(gpus, str) else None
        if typed is not None and fields.get("gpu_type") in (None, typed["kind"]):
            fields |= {"gpus": int(typed["count"]), "gpu_type": typed["kind"]}
        if isinstance(partition, list) and partition and all(map(_is_name, partition)):
            fields["partition"] = ",".join(partition)
        return fields

    def __post_init__(self) -> None:
        """Check what types do not say.

        Raises:
            ValueError: Names the setting, the value and what is expected.
        """
        super().__post_init__()
        if taken := sorted(OWN_OPTIONS & {name.replace("_", "-") for name in self.options}):
            raise ValueError(
                f"got {', '.join(taken)} in options: remove it, it has its own setting or is set "
                "by the pipeline"
            )
        entering = sorted(name for name in self.options if "container" in name)
        if self.container is not None and entering:
            raise ValueError(
                f"got {', '.join(entering)} in options beside container: remove it, or put it into "
                "container.options with runtime: pyxis"
            )


def _is_name(text: object) -> bool:
    return isinstance(text, str) and bool(text) and "," not in text
