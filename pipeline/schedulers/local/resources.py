"""What a job asks of the pool of this machine: section `pool` of cluster.yaml."""

from dataclasses import dataclass

from pipeline.config.job_resources import JobResources


@dataclass(frozen=True, kw_only=True)
class LocalResources(JobResources):
    """What a job asks of the pool of this machine.

    Each task takes `cpus` CPU slots. They are counted, not enforced, as is `memory`, which is
    compared with the machine's when the job is submitted. Without `time` there is no limit.
    """

    visible_gpus: tuple[int | str, ...] | None = None
    """GPUs that jobs may take, as nvidia-smi numbers them, or by UUID. Absent: all that
    CUDA_VISIBLE_DEVICES leaves to whoever submits."""
    cpu_slots: int | None = None
    """Processors that jobs may take together. Absent: all that whoever submits may use."""
    grace: int = 30
    """Seconds between SIGTERM and SIGKILL."""
    crash_limit: int = 5
    """So many deaths in a row, each within a minute of the start, are a failure."""

    def __post_init__(self) -> None:
        """Check what types do not say.

        Raises:
            ValueError: Names the setting, the value and what is expected.
        """
        super().__post_init__()
        if self.nodes != 1:
            raise ValueError(f"got nodes {self.nodes}, expected 1: the pool is this machine")
        for name in ("cpu_slots", "grace", "crash_limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"got {name} {value}, expected 1 or more")
        named = [str(gpu) for gpu in self.visible_gpus or ()]
        if len(set(named)) < len(named):
            raise ValueError(f"got visible_gpus {named}, expected each GPU once")
