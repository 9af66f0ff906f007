"""The metrics that a choice may rest on: of training images held out, never of test images."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from asl_core.analysis import watched
from pipeline.config.suggest import unknown_name
from pipeline.stages.table import EMBED, EVALUATIONS, PRETRAIN


@dataclass(frozen=True)
class HeldOut:
    """A metric by which runs may be ranked; more is better.

    Attributes:
        name: In the metrics files of its stage.
        stage: `linprobe`.
        words: What it is.
        option: Field of the stage's entry without which it is not measured; None: always there.
        on_test: Measured on the test split, which holds training images where the dataset is
            packed with a `selection`.
    """

    name: str
    stage: str
    words: str
    option: str | None = None
    on_test: bool = False


METRICS: dict[str, HeldOut] = {
    metric.name: metric
    for metric in (
        HeldOut("lp_held_out_acc1", "linprobe", "Linear probe, top-1 [%]", "grid_rates"),
        HeldOut("attentive_held_out_acc1", "attentive", "Attentive probe, top-1 [%]", "grid_rates"),
        HeldOut("knn_held_out_acc1", "knn", "k-NN, top-1 [%]", "grid_k"),
        *(
            HeldOut(name, PRETRAIN.name, f"Last snapshot, {title}, top-1 [%]")
            for name, title in reversed(watched.ACCURACIES.items())
        ),
    )
}
"""By name, those first that are taken where a suite names none. A probe that chooses among heads on
these images reports the best head's accuracy there, a little more than it is worth, for every run
alike. What pre-training is watched for comes from fewer images; every run has it."""

OF_SELECTIONS: dict[str, HeldOut] = {
    name: HeldOut(name, stage.name, title, on_test=True)
    for stage in EVALUATIONS
    for name, title in stage.headline.items()
    if stage is not EMBED
}
"""What the tables compare, by name: held out where the dataset has a `selection`."""


def metric_of(name: object) -> HeldOut:
    """Return a metric by its name.

    Raises:
        ValueError: It is none of these.
    """
    known = {**METRICS, **OF_SELECTIONS}
    if isinstance(name, str) and name in known:
        return known[name]
    raise ValueError(unknown_name("held-out metric", name, METRICS))


def measured(content: Mapping[str, Any], experiment: str) -> Iterator[HeldOut]:
    """Yield the metrics that a suite measures of an experiment on images held out.

    Args:
        content: Of a suite.yaml.
        experiment: As it is written there.
    """
    for metric in (*METRICS.values(), *OF_SELECTIONS.values()):
        if metric.stage == PRETRAIN.name:
            yield metric
            continue
        entry = _at(content, metric.stage, experiment)
        if not isinstance(entry, Mapping) or (metric.option and not entry.get(metric.option)):
            continue
        if not metric.on_test or _is_selection(content, entry.get("dataset")):
            yield metric


def why_not(metric: HeldOut, experiment: str) -> str:
    """Say why a suite does not measure a metric of an experiment on images held out."""
    if metric.on_test:
        return (
            f"{metric.name} of {experiment} is measured on test images, on which nothing is "
            "chosen; give the dataset a `selection`"
        )
    return f"{metric.name} wants {metric.option} in {metric.stage}.{experiment}; add it"


def _is_selection(content: Mapping[str, Any], dataset: object) -> bool:
    """Say whether a dataset's test split is made of training images."""
    images = _at(content, "tokenizers", dataset)
    name = images.get("dataset") if isinstance(images, Mapping) else dataset
    packed = _at(content, "datasets", name)
    return isinstance(packed, Mapping) and bool(packed.get("selection"))


def _at(content: Mapping[str, Any], section: str, key: object) -> Any:
    entries = content.get(section)
    return entries.get(key) if isinstance(entries, Mapping) else None
