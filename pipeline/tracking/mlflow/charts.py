"""The paper's comparison as a saved view of MLflow's experiment page, for a browser to open.

The view has two faces: a table with a column for each result, and charts. MLflow titles a chart of
the experiment page by its metric and ignores the name that a view gives it; the names of sections
it does show, the first thirty letters, so each result has a section.
"""

import json
from collections.abc import Mapping
from typing import Any

from asl_core.analysis import watched
from pipeline.stages.table import EVALUATIONS

VIEW = "asl-results"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
"""Tag of an experiment under which MLflow's pages look for a view of that name."""

CURRENT = "tags.`asl.stage` = 'experiment' and tags.`asl.current` = 'true'"
"""One run an experiment: it has the results of all stages and the curves of its pre-training."""

RESULTS = {name: title for stage in EVALUATIONS for name, title in stage.headline.items()}
TASKS = tuple(RESULTS)
TITLES = {
    **RESULTS,
    "pretrain/loss": "Pre-training loss",
    "pretrain/loss_mae": "Pixel loss (Eq. 2)",
    "pretrain/loss_sem": "Alignment loss (Eq. 9-10)",
    "pretrain/branch_distance": "Distance of ASL's branches",
    "pretrain/lr": "Learning rate",
    "pretrain/images_per_s": "Images per second",
    **watched.TITLES,
}


MOST_COLUMNS, CARD_HEIGHT = 2, 280
"""Charts beside each other, and pixels of each: in a third of the page labels have no room."""


def comparison_view(suite: str, now_ms: int) -> str:
    """Return the tag's text: columns and charts that need no clicking together.

    The results of all tasks, linear probing against fine-tuning, token similarity against linear
    probing (Figure 1), and the curves of the pre-trainings, what they are watched for among them.
    Experiments that lack a metric are left out of its chart by MLflow.

    Args:
        suite: Its name.
        now_ms: Milliseconds since 1970.
    """
    training = [key for key in TITLES if key.startswith("pretrain/")]
    sections = {
        **{TITLES[key]: [_bar(key)] for key in TASKS},
        "Linear probe and fine-tuning": [_scatter("lp_acc1", "ft_acc1")],
        "Figure 1: token similarity": [_scatter("token_similarity", "lp_acc1")],
        "Pre-training": [_line(key) for key in training],
        "Watched at snapshots": [_line(key) for key in watched.TITLES],
    }
    state = {
        "searchFilter": CURRENT,
        "selectedColumns": ["params.`method`", *(f"metrics.`{key}`" for key in TASKS)],
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "isAccordionReordered": True,  # else MLflow sorts sections by their names
        "hideEmptyCharts": True,
        "compareRunSections": [
            {"uuid": f"section-{place}", "name": name, "display": True, "isReordered": True,
             "deleted": False, "isGenerated": False, "columns": min(MOST_COLUMNS, len(cards)),
             "cardHeight": CARD_HEIGHT}
            for place, (name, cards) in enumerate(sections.items())
        ],
        "compareRunCharts": [
            {"uuid": f"card-{place}-{number}", "metricSectionId": f"section-{place}",
             "deleted": False, "isGenerated": False, "runsCountToCompare": 100, **card}
            for place, cards in enumerate(sections.values())
            for number, card in enumerate(cards)
        ],
    }  # fmt: skip
    view = {"name": f"Results of {suite}", "createdAt": now_ms, "updatedAt": now_ms,
            "state": json.dumps(state)}  # fmt: skip
    return json.dumps(view)


def _scatter(x: str, y: str) -> Mapping[str, Any]:
    axes = {"xaxis": {"key": x, "type": "METRIC"}, "yaxis": {"key": y, "type": "METRIC"}}
    return {"type": "SCATTER", **axes}


def _bar(metric: str) -> Mapping[str, Any]:
    return {"type": "BAR", "displayName": TITLES[metric], "metricKey": metric}


def _line(metric: str) -> Mapping[str, Any]:
    return {
        "type": "LINE", "displayName": TITLES[metric], "metricKey": metric,
        "selectedMetricKeys": [metric], "lineSmoothness": 0, "xAxisScaleType": "linear",
        "scaleType": "linear", "xAxisKey": "step", "selectedXAxisMetricKey": "",
        "yAxisKey": "metric", "yAxisExpressions": [], "range": {}, "ignoreOutliers": False,
        "useGlobalXaxisKey": True, "useGlobalLineSmoothing": True,
    }  # fmt: skip
