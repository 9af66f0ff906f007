"""What guessing gives: the accuracy of drawing classes at random, all equally often."""

import re
from collections.abc import Sequence

from pipeline.tables.collect import StageResult, Suite
from pipeline.tables.paper import Metric

_TOP_K = re.compile(r"_acc(\d+)(?:_|$)")
"""How accuracies are named: `lp_acc1`, `knn_acc5`, `fewshot_acc1_1pct`."""


def chance_level(metric: Metric, classes: int | None) -> float | None:
    """Return the expected accuracy of guessing k different classes of K, 100 k / K, in percent.

    However often each class occurs, a guess that draws all of them alike is right so often.

    Args:
        metric: An accuracy; of another number, as AP or mIoU, chance is not a matter of K alone.
        classes: K; None where nobody has said.
    """
    if metric.tested != "share" or not classes:
        return None
    found = _TOP_K.search(metric.name)
    return None if found is None else 100 * min(int(found[1]), classes) / classes


def chance_of_runs(suite: Suite, metric: Metric, runs: Sequence[StageResult]) -> float | None:
    """Return the chance level of some runs' numbers.

    None where their data are not prepared here, or where they have not all the same.
    """
    found = {chance_level(metric, _classes(suite, run)) for run in runs}
    return found.pop() if len(found) == 1 else None


def _classes(suite: Suite, run: StageResult) -> int | None:
    manifest = suite.datasets.get(str(getattr(run.recipe, "dataset", "")))
    return None if manifest is None or manifest.classes is None else len(manifest.classes)
