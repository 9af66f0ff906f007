"""What a job asks of Slurm: section `slurm` of cluster.yaml."""

from collections.abc import Mapping
from dataclasses import dataclass, field

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


@dataclass(frozen=True, kw_only=True)
class SlurmResources(JobResources):
    """What a job asks of Slurm.

    Memory and time are handed to sbatch as they are; what is absent the partition decides. Slurm
    may warn of a time limit a minute earlier than it was asked to.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    options: Mapping[str, str | int | bool] = field(default_factory=dict)
    """Any other option of sbatch by its long name: {reservation: asl, exclusive: true}."""

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
