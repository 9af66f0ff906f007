"""Linear probe of a pre-trained encoder."""

from asl_core.modules.encoder import load_encoder
from asl_core.modules.weights import save_weights
from asl_core.recipes.transfer import LinearProbe
from asl_core.transfer.classification import Predictions
from asl_core.transfer.features import labelled_dataset
from asl_core.transfer.linprobe import ProbeHeads, evaluate_probe, linprobe
from pipeline.stages.classification import picture_classification
from pipeline.stages.request import StageRequest, StoredRun
from pipeline.stages.stored import load_stored
from pipeline.stages.training import begin_training

WEIGHTS = "probe.safetensors"


def run(request: StageRequest[LinearProbe]) -> dict[str, float]:
    """Train the probe; write its weights and the confusion matrix."""
    heads, by_pooling = linprobe(
        request.recipe, request.inputs["encoder"], request.inputs["dataset"],
        begin_training(request),
    )  # fmt: skip
    save_weights(request.out / WEIGHTS, heads.state_dict())
    picture_classification(request, by_pooling[request.recipe.pooling])
    return _metrics(request.recipe, by_pooling)


def reevaluate(run: StoredRun[LinearProbe]) -> dict[str, float]:
    """Classify the test images once more with the stored weights."""
    encoder = load_encoder(run.inputs["encoder"], image_size=run.recipe.image_size)
    num_classes = labelled_dataset(run.inputs["dataset"], "train").num_classes
    heads = ProbeHeads(run.recipe, encoder.vit.embed_dim, num_classes)
    load_stored(heads, run.folder / WEIGHTS)
    by_pooling = evaluate_probe(heads, encoder, run.recipe, run.inputs["dataset"], run.resources)
    return _metrics(run.recipe, by_pooling)


def _metrics(recipe: LinearProbe, by_pooling: dict[str, Predictions]) -> dict[str, float]:
    """Return the accuracies of the recipe's pooling, and of each where both are probed."""
    metrics = {f"lp_acc{k}": by_pooling[recipe.pooling].accuracy(k) for k in (1, 5)}
    if recipe.both_poolings:
        metrics |= {f"lp_acc1_{name}": each.accuracy() for name, each in by_pooling.items()}
    return metrics
