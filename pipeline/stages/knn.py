"""k nearest neighbours among the frozen features of a pre-trained encoder."""

from asl_core import distributed
from asl_core.engine.devices import pick_device
from asl_core.recipes.knn import NearestNeighbours
from asl_core.transfer.knn import Vote, classify_by_neighbours, voted_accuracy
from pipeline.stages.classification import picture_classification
from pipeline.stages.request import StageRequest, StoredRun


def run(request: StageRequest[NearestNeighbours]) -> dict[str, float]:
    """Classify the test images; draw what was said of them."""
    distributed.initialise_from_environment(pick_device(request.resources))
    vote = classify_by_neighbours(
        request.recipe, request.inputs["encoder"], request.inputs["dataset"], request.resources,
        request.features,
    )  # fmt: skip
    picture_classification(request, vote.predictions)
    return _metrics(request.recipe, vote)


def reevaluate(run: StoredRun[NearestNeighbours]) -> dict[str, float]:
    """Classify the test images once more: there is nothing but the encoder to be stored."""
    vote = classify_by_neighbours(
        run.recipe, run.inputs["encoder"], run.inputs["dataset"], run.resources
    )
    return _metrics(run.recipe, vote)


def _metrics(recipe: NearestNeighbours, vote: Vote) -> dict[str, float]:
    metrics = {f"knn_acc{k}": voted_accuracy(vote.predictions, k) for k in (1, 5)}
    if recipe.grid_k:
        metrics |= {f"knn_acc1_{name}": voted_accuracy(p) for name, p in vote.by_pooling.items()}
        metrics |= {
            "knn_held_out_acc1": vote.held_out[vote.pooling, vote.k], "knn_k": float(vote.k),
        }  # fmt: skip
    return metrics
