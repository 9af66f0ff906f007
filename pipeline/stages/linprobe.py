"""Linear probe of a pre-trained encoder."""

from asl_core.modules.encoder import load_encoder
from asl_core.recipes.transfer import LinearProbe
from asl_core.transfer.features import labelled_dataset
from asl_core.transfer.linear_heads import ProbeHeads, heads_of
from asl_core.transfer.linprobe import ProbeResult, evaluate_probe, linprobe
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


def run(request: StageRequest[LinearProbe]) -> dict[str, float]:
    """Train the probe; write its weights, what each head came to and the confusion matrix."""
    heads, result = linprobe(
        request.recipe, request.inputs["encoder"], request.inputs["dataset"],
        begin_training(request), request.features,
    )  # fmt: skip
    save_probe(request.out, heads, result.training)
    _write_heads(request, result)
    picture_classification(request, result.predictions[result.chosen.name])
    metrics = _metrics(request.recipe, result)
    say_what_is_unfinished(request, metrics, "lp")
    return metrics


def reevaluate(run: StoredRun[LinearProbe]) -> dict[str, float]:
    """Choose among the stored heads, and classify the test images, once more."""
    encoder = load_encoder(run.inputs["encoder"], image_size=run.recipe.image_size)
    num_classes = labelled_dataset(run.inputs["dataset"], "train").num_classes
    heads = ProbeHeads(run.recipe, encoder.vit.embed_dim, num_classes)
    training = load_probe(run.folder, heads)
    result = evaluate_probe(
        heads, encoder, run.recipe, run.inputs["dataset"], run.resources, training
    )
    return _metrics(run.recipe, result)


def _metrics(recipe: LinearProbe, result: ProbeResult) -> dict[str, float]:
    """Return the accuracies of the head that counts, how it was chosen, how far it has come."""
    every, chosen = heads_of(recipe), result.chosen
    predictions = result.predictions[chosen.name]
    metrics = {f"lp_acc{k}": predictions.accuracy(k) for k in (1, 5)}
    if len(result.by_pooling) > 1 or recipe.grid_rates:
        metrics |= {f"lp_acc1_{name}": result.of(name).accuracy() for name in result.by_pooling}
    training = result.training[:, every.index(chosen)]
    metrics |= progress_metrics("lp", recipe, chosen.rate, training, metrics["lp_acc1"])
    if recipe.grid_rates:
        metrics |= {
            "lp_held_out_acc1": result.held_out[chosen.name],
            "lp_blocks": float(chosen.blocks),
        }
    return metrics


def _write_heads(request: StageRequest[LinearProbe], result: ProbeResult) -> None:
    before, last = result.training.tolist()
    write_heads(
        request,
        [
            {
                "pooling": head.pooling, "blocks": head.blocks, "rate": head.rate,
                "held_out_acc1": result.held_out.get(head.name),
                "train_acc1": last[i], "train_acc1_tenth_before": before[i],
                "chosen": head == result.chosen,
            }
            for i, head in enumerate(heads_of(request.recipe))
        ],
    )  # fmt: skip
