"""What the stages that train probes have in common: weights, heads, and what is unfinished."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from asl_core.errors import InputError
from asl_core.modules.encoder import check_same_architecture
from asl_core.modules.weights import save_weights
from asl_core.protocol import ModuleLike
from asl_core.recipes.probing import Probing
from asl_core.transfer.choice import edge_of
from asl_core.transfer.probe_step import has_converged
from pipeline.rounding import fixed
from pipeline.stages.request import StageRequest

logger = logging.getLogger(__name__)

WEIGHTS, HEADS, TRAINING = "probe.safetensors", "heads.json", "training_accuracy"


def save_probe(folder: Path, heads: ModuleLike, training: Tensor) -> None:
    """Write the weights of all heads, and their accuracies on training batches beside them."""
    save_weights(folder / WEIGHTS, {**heads.state_dict(), TRAINING: training})


def load_probe(folder: Path, heads: ModuleLike) -> Tensor:
    """Load the weights into the heads in place; return the accuracies.

    Raises:
        InputError: They are missing, truncated, or of another architecture.
    """
    path = folder / WEIGHTS
    try:
        state = safetensors.torch.load_file(path)
        training = state.pop(TRAINING)
    except (OSError, SafetensorError, KeyError) as error:
        raise InputError(f"cannot read {path}: {error}; restore it or run its stage") from None
    check_same_architecture(heads, state, path)
    heads.load_state_dict(state)
    return training


def write_heads(request: StageRequest[object], heads: Sequence[Mapping[str, object]]) -> None:
    """Write what each head came to, a line each."""
    lines = (json.dumps({k: v for k, v in head.items() if v == v}) for head in heads)  # no nan
    text = "[\n" + ",\n".join(lines) + "\n]\n"
    (request.out / HEADS).write_text(text, encoding="utf-8")
    request.journal.artifact(HEADS)


def progress_metrics(
    prefix: str, recipe: Probing, rate: float, training: Tensor, test: float
) -> dict[str, float]:
    """Return training accuracy, how it rose at the end, and whether the probe has converged.

    Args:
        prefix: lp, attentive.
        recipe: Of the probe.
        rate: Of the head that counts.
        training: Its accuracy over the tenth of the steps before the last, and over the last.
        test: Its accuracy on test images.
    """
    before, last = training.tolist()
    found = {
        f"{prefix}_train_acc1": last,
        f"{prefix}_train_rise": last - before,
        f"{prefix}_converged": float(has_converged(recipe, rate, training, test)),
    }
    if recipe.grid_rates:
        found[f"{prefix}_rate"] = rate
        found[f"{prefix}_rate_at_edge"] = float(edge_of(rate, recipe.rates))
    return found


def say_what_is_unfinished(
    request: StageRequest[object], metrics: Mapping[str, float], prefix: str
) -> None:
    """Warn of a probe that has not converged, and of one whose rate is its grid's smallest."""
    name = f"{request.stage} {request.key}"
    edge = metrics.get(f"{prefix}_rate_at_edge")
    largest = " at the largest of grid_rates" if edge == 1 else ""
    if not metrics[f"{prefix}_converged"]:
        logger.warning(
            "%s: has not converged: %s %% of its training images over the last tenth of the steps "
            "(%s points more than over the tenth before), %s %% of the test images%s; take larger "
            "rates or more epochs", name, fixed(metrics[f"{prefix}_train_acc1"], 1),
            fixed(metrics[f"{prefix}_train_rise"], 1), fixed(metrics[f"{prefix}_acc1"], 1), largest,
        )  # fmt: skip
    if edge == -1:
        logger.warning(
            "%s: the best of grid_rates is the smallest, %g; take smaller ones as well", name,
            metrics[f"{prefix}_rate"],
        )  # fmt: skip
