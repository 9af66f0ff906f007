"""mlflow.json of a stage run: which MLflow run shows it, and how much of the journal is there.

Readable without MLflow; writes that one file.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.jobs.state import RunStatus
from pipeline.stages.table import PRETRAIN
from pipeline.tracking.mlflow.charts import VIEW
from pipeline.writing import write_json

FILE_NAME = "mlflow.json"

TRAINING = "workflowType=machine_learning"
"""Without it MLflow shows its other face, for language models."""


@dataclass(frozen=True, kw_only=True)
class RunLink:
    """The MLflow run of a stage run.

    Attributes:
        store: Digest of the tracking store's address: run ids mean nothing in another store.
        experiment_id: MLflow's experiment, one per suite.
        parent_run_id: Run that holds the results of all stages of one experiment; None for
            stages that belong to none (prepare, report).
        run_id: The run itself.
        suite: Name of the suite.
        stage: `pretrain`.
        key: `asl`.
        status: As MLflow has it, in our words.
        begun: Lines of each attempt's file that have been sent, perhaps not all of them stored.
        done: Lines of each attempt's file that are stored.
        complete: The run has ended and all its artifacts are stored too.
        credited: Its encoder is among the models, or has its results; nothing to be credited.
        loadable: Its encoder, if it made one, was stored in its model, as far as it was at hand;
            links of earlier versions do not say so.
    """

    store: str
    experiment_id: str
    parent_run_id: str | None
    run_id: str
    suite: str
    stage: str
    key: str
    status: str = RunStatus.RUNNING
    begun: Mapping[str, int] = field(default_factory=dict)
    done: Mapping[str, int] = field(default_factory=dict)
    complete: bool = False
    credited: bool = False
    loadable: bool = False

    def covers(self, lines: Mapping[str, int]) -> bool:
        """Say whether a journal with these line counts per attempt has been sent completely."""
        modelled = self.loadable or self.stage != PRETRAIN.name
        return self.complete and self.credited and modelled and self.done == lines

    @property
    def fragment(self) -> str:
        """Address of the run's page, to be put after the address of MLflow's server."""
        return f"/#/experiments/{self.experiment_id}/runs/{self.run_id}?{TRAINING}"


def read_link(job_folder: Path) -> RunLink | None:
    """Return the link of a job, None where there is none or it is not readable."""
    try:
        return RunLink(**json.loads((job_folder / FILE_NAME).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def write_link(job_folder: Path, link: RunLink) -> None:
    """Replace the link of a job."""
    write_json(job_folder / FILE_NAME, dataclasses.asdict(link))


def is_shown(job_folder: Path) -> bool:
    """Say whether nothing is lost with a journal, without reading it."""
    link = read_link(job_folder)
    if link is None or not link.complete:
        return False
    sent = (job_folder / FILE_NAME).stat().st_mtime
    return all(path.stat().st_mtime <= sent for path in (job_folder / "journal").rglob("*.jsonl"))


def run_link(root: Path, fingerprint: str) -> RunLink | None:
    """Return the MLflow run of a stage's fingerprint, None where it was never tracked here."""
    return read_link(root / ".asl" / "jobs" / fingerprint)


def all_links(root: Path) -> list[RunLink]:
    """Return every link of the project, oldest first."""
    files = (root / ".asl" / "jobs").glob(f"*/{FILE_NAME}")
    folders = [file.parent for file in sorted(files, key=lambda file: file.stat().st_mtime)]
    return [link for folder in folders if (link := read_link(folder)) is not None]


def runs_fragment(experiment_id: str) -> str:
    """Return the address of a suite's list of runs."""
    return f"/#/experiments/{experiment_id}/runs?{TRAINING}"


def charts_fragment(experiment_id: str) -> str:
    """Return the address of the charts that compare a suite's experiments."""
    # no filter beside the view: what the address says goes before what the view says
    view = f"viewStateShareKey={VIEW}&compareRunsMode=CHART"
    return f"/#/experiments/{experiment_id}/runs?{view}&{TRAINING}"


def results_fragment(experiment_id: str) -> str:
    """Return the address of the table of a suite's experiments: a row each, a column a result.

    MLflow's own page that puts runs side by side begins with whatever comes first in the alphabet.
    """
    return f"/#/experiments/{experiment_id}/runs?viewStateShareKey={VIEW}&{TRAINING}"
