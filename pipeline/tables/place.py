"""In which tables and rows the number of a run is shown."""

from pipeline.config.params import Params
from pipeline.stages.table import MEASURED, STAGES
from pipeline.tables.collect import experiments_of
from pipeline.tables.paper import load_paper


def place_of(params: Params, stage: str, key: str) -> dict[str, str]:
    """Return the tables that show a run's experiment, and its row there, as tags of its journal.

    Args:
        params: The suite's.
        stage: `linprobe`.
        key: `asl`.
    """
    found = next((each for each in experiments_of(params) if each.key == key), None)
    if found is None or STAGES[stage] not in MEASURED or not params.tables:
        return {}
    row = found.row or load_paper().method_label(found.recipe)
    return {"table": ", ".join(params.tables), "row": row}
