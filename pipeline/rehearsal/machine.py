"""What a stage would run on."""

from dataclasses import dataclass

from asl_core.recipes.optimisation import Resources


@dataclass(frozen=True)
class Machine:
    """Processes and devices of one run.

    Attributes:
        resources: Of each process.
        processes: How many share a step.
        gpus: How many all of them have.
    """

    resources: Resources
    processes: int
    gpus: int
