"""Linear probe of a pre-trained encoder."""

from asl_core import distributed
from asl_core.data.shards import PackedDataset
from asl_core.engine.context import RunContext
from asl_core.engine.devices import pick_device
from asl_core.modules.weights import save_weights
from asl_core.recipes.transfer import LinearProbe
from asl_core.transfer.classification import Predictions
from asl_core.transfer.linprobe import linprobe
from pipeline.stages.mistakes import save_worst_mistakes
from pipeline.stages.pictures import save_confusion_matrix
from pipeline.stages.request import StageRequest


def run(request: StageRequest) -> dict[str, float]:
    """Train the probe; write its weights and the confusion matrix."""
    distributed.initialise_from_environment(pick_device(request.resources))
    context = RunContext(
        request.work / "ckpt", request.journal, request.resources, "linprobe", request.key,
        request.before_checkpoint,
    )  # fmt: skip
    heads, by_pooling = linprobe(
        request.recipe, request.inputs["encoder"], request.inputs["dataset"], context
    )
    save_weights(request.out / "probe.safetensors", heads.state_dict())
    predictions = by_pooling[request.recipe.pooling]
    test = PackedDataset(request.inputs["dataset"], "test")
    classes = list(test.manifest.classes or ())
    save_confusion_matrix(request.out / "pictures/confusion.png", predictions.confusion(), classes)
    save_worst_mistakes(request.out / "pictures/worst_mistakes.png", predictions, test)
    for picture in ("confusion", "worst_mistakes"):
        request.journal.artifact(f"pictures/{picture}.png")
    return probe_metrics(request.recipe, by_pooling)


def probe_metrics(recipe: LinearProbe, by_pooling: dict[str, Predictions]) -> dict[str, float]:
    """Return the accuracies of the recipe's pooling, and of each where both are probed."""
    metrics = {f"lp_acc{k}": by_pooling[recipe.pooling].accuracy(k) for k in (1, 5)}
    if recipe.both_poolings:
        metrics |= {f"lp_acc1_{name}": each.accuracy() for name, each in by_pooling.items()}
    return metrics
