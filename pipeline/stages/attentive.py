"""Attentive probe of a pre-trained encoder."""

from asl_core.modules.encoder import load_encoder
from asl_core.recipes.attentive import AttentiveProbe
from asl_core.transfer.attentive import AttentiveResult, attentive_probe, evaluate_attentive
from asl_core.transfer.attentive_heads import AttentiveHeads
from asl_core.transfer.features import labelled_dataset
from pipeline.stages.classification import picture_classification
from pipeline.stages.probes import (
    load_probe,
    progress_metrics,
    save_probe,
    say_what_is_unfinished,
    write_heads,
)
from pipeline.stages.request import StageRequest, StoredRun
from pipeline.stages.training import begin_training


def run(request: StageRequest[AttentiveProbe]) -> dict[str, float]:
    """Train the probe; write its weights, what each rate came to and the confusion matrix."""
    heads, result = attentive_probe(
        request.recipe, request.inputs["encoder"], request.inputs["dataset"],
        begin_training(request),
    )  # fmt: skip
    save_probe(request.out, heads, result.training)
    before, last = result.training.tolist()
    write_heads(
        request,
        [
            {
                "rate": rate, "held_out_acc1": result.held_out[i] if result.held_out else None,
                "train_acc1": last[i], "train_acc1_tenth_before": before[i],
                "chosen": i == result.place,
            }
            for i, rate in enumerate(request.recipe.rates)
        ],
    )  # fmt: skip
    picture_classification(request, result.predictions)
    metrics = _metrics(request.recipe, result)
    say_what_is_unfinished(request, metrics, "attentive")
    return metrics


def reevaluate(run: StoredRun[AttentiveProbe]) -> dict[str, float]:
    """Choose among the stored heads, and classify the test images, once more."""
    encoder = load_encoder(run.inputs["encoder"], image_size=run.recipe.image_size)
    num_classes = labelled_dataset(run.inputs["dataset"], "train").num_classes
    heads = AttentiveHeads(run.recipe, encoder.vit.embed_dim, num_classes)
    training = load_probe(run.folder, heads)
    result = evaluate_attentive(
        heads, encoder, run.recipe, run.inputs["dataset"], run.resources, training
    )
    return _metrics(run.recipe, result)


def _metrics(recipe: AttentiveProbe, result: AttentiveResult) -> dict[str, float]:
    """Return the accuracies of the head that counts, how it was chosen, how far it has come."""
    metrics = {f"attentive_acc{k}": result.predictions.accuracy(k) for k in (1, 5)}
    training = result.training[:, result.place]
    metrics |= progress_metrics(
        "attentive", recipe, result.rate, training, metrics["attentive_acc1"]
    )
    if recipe.grid_rates:
        metrics["attentive_held_out_acc1"] = result.held_out[result.place]
    return metrics
