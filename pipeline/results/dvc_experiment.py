"""Whether DVC runs a stage for an experiment (`dvc exp run`), and where. Reads only.

DVC says so in the environment of the stage. With `--temp` or from its queue it works in a copy of
the project under `.dvc/tmp/exps`, which it deletes afterwards with all that DVC does not keep.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError
from pipeline.project import Project, find_project

NAME, BASELINE, ASIDE = "dvc.exp.name", "dvc.exp.baseline", "dvc.exp.temporary"
"""Tags of a run: the experiment's name, the commit it started from, and whether a copy was made."""


@dataclass(frozen=True)
class DvcExperiment:
    """An experiment of DVC.

    Attributes:
        name: As `dvc exp show` has it.
        baseline: Commit from which it started.
        origin: Root of the project that the copy was made from; None in the workspace itself.
    """

    name: str
    baseline: str
    origin: Path | None

    @property
    def tags(self) -> dict[str, str]:
        """Return what the journals of its runs say of it."""
        aside = {} if self.origin is None else {ASIDE: "true"}
        return {NAME: self.name, BASELINE: self.baseline, **aside}


def find_dvc_experiment(project: Project, environment: Mapping[str, str]) -> DvcExperiment | None:
    """Return the experiment for which a stage runs, None where it runs for none.

    Args:
        project: Where it runs.
        environment: As DVC has set it.
    """
    name, started = environment.get("DVC_EXP_NAME"), environment.get("DVC_ROOT")
    if not name or not started:
        return None
    try:
        origin = find_project(Path(started), "demo").root
    except UserError:  # a variable that somebody else has set
        return None
    baseline = environment.get("DVC_EXP_BASELINE_REV", "")
    return DvcExperiment(name, baseline, None if origin == project.root else origin)
