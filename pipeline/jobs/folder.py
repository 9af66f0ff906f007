"""Every file name of a stage run's scratch folder, `.asl/jobs/<fingerprint>/`."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.stages.request import DETAILS

NODE_PREFIX = "node-"
PROVISIONAL = "p-"
"""Begins the fingerprint of a run whose inputs do not exist yet."""

FEATURES = "features"
"""Folder of `.asl`: features can be computed again from the encoder, so they are no outputs."""


@dataclass(frozen=True)
class JobFolder:
    """The folder of one stage run; it survives a kill, and the next attempt finds it.

    What a run that was handed to a scheduler keeps lies here too.

    Attributes:
        folder: `.asl/jobs/<fingerprint>`.
    """

    folder: Path

    @classmethod
    def of(cls, scratch: Path, fingerprint: str) -> "JobFolder":
        """Return the paths of a run; `scratch` is the project's `.asl`."""
        return cls(scratch / "jobs" / fingerprint)

    @property
    def features(self) -> Path:
        """The features that evaluations of one encoder share: not of this run alone."""
        return self.folder.parents[1] / FEATURES

    @property
    def checkpoints(self) -> Path:
        return self.folder / "ckpt"

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def details(self) -> Path:
        """The outputs that people look at, while they are here."""
        return self.out / DETAILS

    @property
    def journal(self) -> Path:
        return self.folder / "journal"

    def node_journal(self, rank: int) -> Path:
        """Return the journal of a machine other than the first process's: samples of it alone."""
        return self.journal / f"{NODE_PREFIX}{rank}"

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    @property
    def metrics(self) -> Path:
        """Metrics file of a run whose outputs go to DVC's cache and not to the suite."""
        return self.folder / "metrics.json"

    @property
    def fence(self) -> Path:
        """Which start of the job may write."""
        return self.folder / "fence.json"

    def rank_folder(self, rank: int) -> Path:
        """Return the scratch of a process that helps the first one."""
        return self.folder / f"rank-{rank}"

    @property
    def lock(self) -> Path:
        return self.folder / "lock"

    @property
    def fingerprint(self) -> str:
        return self.folder.name

    @property
    def scratch(self) -> Path:
        return self.folder.parents[1]

    @property
    def job(self) -> Path:
        return self.folder / "job.json"

    @property
    def attempts(self) -> Path:
        return self.folder / "attempts"

    @property
    def starts(self) -> Path:
        """Where each start was and how it ended."""
        return self.folder / "starts"

    @property
    def state(self) -> Path:
        return self.folder / "state.json"

    @property
    def params(self) -> Path:
        return self.folder / "params.yaml"

    @property
    def accepted(self) -> Path:
        """What a bundle's machine said of a run that was made there."""
        return self.folder / "accepted.json"

    @property
    def source(self) -> Path:
        """Link to the newest attempt's code, for people."""
        return self.folder / "src"

    @property
    def inputs(self) -> Path:
        return self.folder / "in"

    @property
    def logs(self) -> Path:
        """Folder of what the scheduler caught of standard output and error."""
        return self.folder / "log"

    @property
    def ready(self) -> Path:
        """What the first process of a job tells the others before they begin."""
        return self.folder / "ready.json"

    def rank_error(self, rank: int) -> Path:
        """Return where a process other than the first leaves its traceback."""
        return self.folder / f"rank-{rank}.error.json"

    def rank_stopped(self, rank: int) -> Path:
        """Return where a process other than the first says that it obeyed a signal to stop."""
        return self.folder / f"rank-{rank}.stopped.json"

    def rank_gpus(self, rank: int) -> Path:
        """Return where a process other than the first says which GPUs its node has."""
        return self.folder / f"rank-{rank}.gpus.json"
