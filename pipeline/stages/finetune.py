"""Fine-tune a pre-trained encoder end to end."""

from asl_core.modules.weights import save_weights
from asl_core.recipes.transfer import FineTune
from asl_core.transfer.classification import Predictions
from asl_core.transfer.features import labelled_dataset
from asl_core.transfer.finetune import build_classifier, classify, finetune
from pipeline.stages.classification import picture_classification
from pipeline.stages.request import StageRequest, StoredRun
from pipeline.stages.stored import load_stored
from pipeline.stages.training import begin_training

WEIGHTS = "classifier.safetensors"


def run(request: StageRequest[FineTune]) -> dict[str, float]:
    """Train the classifier; write its weights and the confusion matrix."""
    model, predictions = finetune(
        request.recipe, request.inputs["encoder"], request.inputs["dataset"],
        begin_training(request),
    )  # fmt: skip
    save_weights(request.out / WEIGHTS, model.state_dict())
    picture_classification(request, predictions)
    return _metrics(predictions)


def reevaluate(run: StoredRun[FineTune]) -> dict[str, float]:
    """Classify the test images once more with the stored weights."""
    train, test = (labelled_dataset(run.inputs["dataset"], split) for split in ("train", "test"))
    model = build_classifier(run.recipe, run.inputs["encoder"], train)
    load_stored(model, run.folder / WEIGHTS)
    return _metrics(classify(model, test, run.recipe.precision, run.resources))


def _metrics(predictions: Predictions) -> dict[str, float]:
    return {f"ft_acc{k}": predictions.accuracy(k) for k in (1, 5)}
