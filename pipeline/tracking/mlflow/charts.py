"""The paper's comparison as a saved view of MLflow's experiment page, for a browser to open."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from asl_core.analysis import watched
from pipeline.stages.table import EVALUATIONS

VIEW = "asl-comparison"
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


def comparison_view(suite: str, now_ms: int) -> str:
    """Return the tag's text: charts that need no clicking together, of a suite's experiments.

    Linear probing against fine-tuning, token similarity against linear probing (Figure 1), all
    tasks side by side, and the curves of the pre-trainings, what they are watched for among them.
    Experiments that lack a metric are
    left out of its chart by MLflow.

    Args:
        suite: Its name.
        now_ms: Milliseconds since 1970.
    """
    sections = {
        "Comparison": [
            _scatter("Linear probe against fine-tuning", "lp_acc1", "ft_acc1"),
            _scatter("Figure 1: token similarity against linear probe",
                     "token_similarity", "lp_acc1"),
            _parallel("All tasks", ["method"], TASKS),
            *(_bar(key) for key in TASKS),
        ],
        "Pre-training": [_line(key) for key in TITLES if key.startswith("pretrain/")],
        "Watched at snapshots": [_line(key) for key in watched.TITLES],
    }  # fmt: skip
    state = {
        "searchFilter": CURRENT,
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "isAccordionReordered": True,  # else MLflow sorts sections by their names
        "hideEmptyCharts": True,
        "compareRunSections": [
            {"uuid": name, "name": name, "display": True, "isReordered": True,
             "deleted": False, "isGenerated": False}
            for name in sections
        ],
        "compareRunCharts": [
            {"uuid": f"{section}-{number}", "metricSectionId": section, "deleted": False,
             "isGenerated": False, "runsCountToCompare": 100, **card}
            for section, cards in sections.items()
            for number, card in enumerate(cards)
        ],
    }  # fmt: skip
    view = {"name": f"Comparison of {suite}", "createdAt": now_ms, "updatedAt": now_ms,
            "state": json.dumps(state)}  # fmt: skip
    return json.dumps(view)


def _scatter(title: str, x: str, y: str) -> Mapping[str, Any]:
    axes = {"xaxis": {"key": x, "type": "METRIC"}, "yaxis": {"key": y, "type": "METRIC"}}
    return {"type": "SCATTER", "displayName": title, **axes}


def _parallel(title: str, params: Sequence[str], metrics: Sequence[str]) -> Mapping[str, Any]:
    return {"type": "PARALLEL", "displayName": title, "selectedParams": list(params),
            "selectedMetrics": list(metrics), "showAllRuns": False}  # fmt: skip


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
