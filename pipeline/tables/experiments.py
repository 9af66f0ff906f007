"""Two experiments of the project side by side. Reads only."""

from pathlib import Path

from pipeline.config.params import load_params
from pipeline.project import Project, find_project
from pipeline.tables.collect import Suite, collect
from pipeline.tables.compare import Comparison, compare
from pipeline.tables.paper import load_paper


def compare_experiments(here: Path, first: str, second: str) -> Comparison:
    """Compare two experiments by name.

    Args:
        here: The present folder.
        first: `asl` of the present folder's suite, or `cifar10-mini/asl`.
        second: Likewise.

    Raises:
        UserError: There is no such suite or experiment.
    """
    return compare(_find(here, first), _find(here, second))


def _find(here: Path, name: str) -> tuple[Suite, str]:
    folder, slash, experiment = name.rpartition("/")
    present = None if (here / "params.yaml").is_file() else "demo"
    project: Project = find_project(here, folder if slash else present)
    suite = collect(project.suite, load_params(project.params_file, load_paper().references()))
    return suite, experiment
