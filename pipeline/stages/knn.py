"""k nearest neighbours among the frozen features of a pre-trained encoder."""

from asl_core import distributed
from asl_core.engine.devices import pick_device
from asl_core.recipes.knn import NearestNeighbours
from asl_core.transfer.classification import Predictions
from asl_core.transfer.knn import classify_by_neighbours, voted_accuracy
from pipeline.stages.classification import picture_classification
from pipeline.stages.request import StageRequest, StoredRun


def run(request: StageRequest[NearestNeighbours]) -> dict[str, float]:
    """Classify the test images; draw what was said of them."""
    distributed.initialise_from_environment(pick_device(request.resources))
    predictions = classify_by_neighbours(
        request.recipe, request.inputs["encoder"], request.inputs["dataset"], request.resources
    )
    picture_classification(request, predictions)
    return _metrics(predictions)


def reevaluate(run: StoredRun[NearestNeighbours]) -> dict[str, float]:
    """Classify the test images once more: there is nothing but the encoder to be stored."""
    return _metrics(
        classify_by_neighbours(
            run.recipe, run.inputs["encoder"], run.inputs["dataset"], run.resources
        )
    )


def _metrics(predictions: Predictions) -> dict[str, float]:
    return {f"knn_acc{k}": voted_accuracy(predictions, k) for k in (1, 5)}
