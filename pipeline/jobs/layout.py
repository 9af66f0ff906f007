"""Every file name of a stage run's scratch folder, `.asl/jobs/<fingerprint>/`."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class JobPaths:
    """The scratch folder of one stage run; it survives a kill, and the next attempt finds it.

    Attributes:
        folder: `.asl/jobs/<fingerprint>`.
    """

    folder: Path

    @classmethod
    def of(cls, scratch: Path, fingerprint: str) -> "JobPaths":
        """Return the paths of a run; `scratch` is the project's `.asl`."""
        return cls(scratch / "jobs" / fingerprint)

    @property
    def checkpoints(self) -> Path:
        return self.folder / "ckpt"

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def journal(self) -> Path:
        return self.folder / "journal"

    @property
    def record(self) -> Path:
        return self.folder / "record.json"

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    def rank_folder(self, rank: int) -> Path:
        """Return the scratch of a process that helps the first one."""
        return self.folder / f"rank-{rank}"

    @property
    def lock(self) -> Path:
        return self.folder / "lock"


@dataclass(frozen=True)
class OutputPaths:
    """Where a suite keeps the outputs of a stage run: the outs and metrics of dvc.yaml."""

    folder: Path
    metrics: Path | None

    @classmethod
    def of(cls, suite: Path, stage: str, key: str) -> "OutputPaths":
        """Return the output folder and the metrics file, where the stage has one."""
        if stage == "prepare":
            return cls(suite / "data" / key, None)
        if stage == "report":
            return cls(suite / "reports", None)
        return cls(suite / "runs" / stage / key, suite / "runs" / stage / f"{key}.json")
