"""Two experiments of the project side by side. Reads only."""

from pathlib import Path

from pipeline.project import find_project
from pipeline.tables.collect import Suite, read_suite
from pipeline.tables.compare import Comparison, compare


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
    return read_suite(find_project(here, folder if slash else present)), experiment
