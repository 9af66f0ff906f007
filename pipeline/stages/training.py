"""What the stages that train have in common: processes, checkpoints, journal."""

from asl_core import distributed
from asl_core.engine.context import RunContext
from asl_core.engine.devices import pick_device
from pipeline.stages.request import StageRequest


def begin_training(request: StageRequest[object]) -> RunContext:
    """Join the other processes of the run and return what surrounds its training."""
    distributed.initialise_from_environment(pick_device(request.resources))
    return RunContext(
        request.work / "ckpt", request.journal, request.resources, request.stage, request.key,
        request.before_checkpoint, request.replay, request.rehearsal,
    )  # fmt: skip
