"""Fine-tune a pre-trained encoder end to end."""

from asl_core import distributed
from asl_core.data.shards import PackedDataset
from asl_core.engine.context import RunContext
from asl_core.engine.devices import pick_device
from asl_core.modules.weights import save_weights
from asl_core.transfer.finetune import finetune
from pipeline.stages.mistakes import save_worst_mistakes
from pipeline.stages.pictures import save_confusion_matrix
from pipeline.stages.request import StageRequest


def run(request: StageRequest) -> dict[str, float]:
    """Train the classifier; write its weights and the confusion matrix."""
    distributed.initialise_from_environment(pick_device(request.resources))
    context = RunContext(
        request.work / "ckpt", request.journal, request.resources, "finetune", request.key,
        request.before_checkpoint,
    )  # fmt: skip
    model, predictions = finetune(
        request.recipe, request.inputs["encoder"], request.inputs["dataset"], context
    )
    save_weights(request.out / "classifier.safetensors", model.state_dict())
    test = PackedDataset(request.inputs["dataset"], "test")
    classes = list(test.manifest.classes or ())
    save_confusion_matrix(request.out / "pictures/confusion.png", predictions.confusion(), classes)
    save_worst_mistakes(request.out / "pictures/worst_mistakes.png", predictions, test)
    for picture in ("confusion", "worst_mistakes"):
        request.journal.artifact(f"pictures/{picture}.png")
    return {"ft_acc1": predictions.accuracy(1), "ft_acc5": predictions.accuracy(5)}
