"""Pre-train an encoder."""

import dataclasses
import logging
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from asl_core import distributed
from asl_core.analysis import watched
from asl_core.analysis.cost import measure_cost
from asl_core.analysis.watching import WatchPlan, measure, plan_watching
from asl_core.data.shards import PackedDataset
from asl_core.engine.devices import pick_device
from asl_core.exchange.starting import read_all, read_encoder
from asl_core.held_out import HELD_OUT_FOLDER, held_out_files, write_held_out
from asl_core.methods import encoder_adopter, encoder_drawer
from asl_core.modules.encoder import save_encoder
from asl_core.modules.starting import begin_with_all, begin_with_encoder
from asl_core.modules.weights import save_weights
from asl_core.pretrain import (
    build_method,
    find_tokenizer,
    own_accuracy,
    picture_reconstructions,
    picture_views,
    pretrain,
)
from asl_core.protocol import Classifying, Method, Reconstructing
from asl_core.recipes.imported import ORIGIN_FILE, ImportedRecipe
from asl_core.recipes.optimisation import Resources
from asl_core.recipes.pretraining import MaskedPretraining, Pretraining
from asl_core.recipes.untrained import UntrainedRecipe
from pipeline.jobs.journal import Points, effective_points, last_losses
from pipeline.stages.pictures import save_image_grid
from pipeline.stages.request import START, StageRequest, StoredRun
from pipeline.stages.stored import load_stored
from pipeline.stages.training import begin_training

logger = logging.getLogger(__name__)

WEIGHTS = "method.safetensors"
RECONSTRUCTIONS = "pictures/reconstructions"
"""Folder of the same test images, reconstructed at each snapshot: `step-000390.png`."""
VIEWS = "pictures/views.png"


def run(request: StageRequest[Pretraining | ImportedRecipe | UntrainedRecipe]) -> dict[str, float]:
    """Train the method; write encoder, whole method, predictions of test images, pictures."""
    recipe = request.recipe
    if isinstance(recipe, ImportedRecipe):
        return _take_over(request, recipe)
    if isinstance(recipe, UntrainedRecipe):
        return _draw(recipe, request.outputs["encoder"])
    context = begin_training(request)
    images = PackedDataset(request.inputs["dataset"], "train")
    plan = plan_watching(recipe, len(images))
    watch = None if plan is None else partial(_watch, request, recipe, plan, images)
    method = pretrain(
        recipe, request.inputs["dataset"], context,
        at_snapshot=partial(_snapshot, request, recipe, watch),
        at_start=None if watch is None else partial(watch, step=0),
        initialise=None if recipe.initialise is None else partial(_initialise, request, recipe),
    )  # fmt: skip
    if distributed.rank() > 0:
        return {}
    save_encoder(
        request.outputs["encoder"], method.encoder_state(), recipe.model, recipe.encoder_parts
    )
    save_weights(request.out / WEIGHTS, method.state_dict())
    for path in _pictures(request, recipe, method):
        request.journal.artifact(path.relative_to(request.out).as_posix())
    dataset = request.inputs["dataset"]
    return _metrics(request.work / "journal", method, recipe, dataset, request.resources)


def reevaluate(run: StoredRun[Pretraining | ImportedRecipe | UntrainedRecipe]) -> dict[str, float]:
    """Write the encoder and the last predictions again; return all metrics again.

    The losses are those of the run's journal: a replay compares the steps that made them.
    """
    recipe, dataset = run.recipe, run.inputs.get("dataset")
    if isinstance(recipe, ImportedRecipe):
        encoder = encoder_adopter()(run.inputs["imported"], recipe, run.again["encoder"])
        return {"encoder_parameters_m": _count_millions(encoder)}
    if isinstance(recipe, UntrainedRecipe):
        return _draw(recipe, run.again["encoder"])
    assert dataset is not None  # only what is not trained has none
    method = build_method(recipe, PackedDataset(dataset, "train"))
    load_stored(method, run.folder / WEIGHTS)
    save_encoder(run.again["encoder"], method.encoder_state(), recipe.model, recipe.encoder_parts)
    if isinstance(method, Reconstructing):
        assert isinstance(recipe, MaskedPretraining)  # as the protocol has it
        method.to(pick_device(run.resources))
        last = max(held_out_files(run.outputs["held_out"]))
        write_held_out(method, dataset, recipe.held_out_images, run.again["held_out"], last)
    return _metrics(run.folder / "journal", method, recipe, dataset, run.resources)


def _metrics(
    journal: Path, method: Method, recipe: Pretraining, dataset: Path, resources: Resources
) -> dict[str, float]:
    return (
        final_losses(journal)
        | final_watched(effective_points(journal))
        | {"encoder_parameters_m": _count_millions(method.encoder)}
        | cost_metrics(recipe, dataset)
        | own_metrics(method, recipe, dataset, resources)
    )


def cost_metrics(recipe: Pretraining, dataset: Path) -> dict[str, float]:
    """Return what an image costs in training, and the parameters."""
    classes = PackedDataset(dataset, "train").num_classes
    return dataclasses.asdict(measure_cost(recipe, classes, find_tokenizer(recipe, dataset)))


def own_metrics(
    method: Method, recipe: Pretraining, dataset: Path, resources: Resources
) -> dict[str, float]:
    """Return what a method can be measured by itself: its classes, if it tells any."""
    if not isinstance(method, Classifying):
        return {}
    return {"supervised_acc1": own_accuracy(method, recipe, dataset, resources)}


def _pictures(request: StageRequest[object], recipe: Pretraining, method: Method) -> list[Path]:
    """Put into `out` what a person wants to look at: reconstructions, or what the method sees."""
    if not isinstance(method, Reconstructing):
        path = request.out / VIEWS
        path.parent.mkdir(exist_ok=True)
        save_image_grid(path, picture_views(recipe, request.inputs["dataset"]))
        return [path]
    held_out = request.outputs["held_out"]
    shutil.copytree(request.work / HELD_OUT_FOLDER, held_out, dirs_exist_ok=True)
    shutil.copytree(request.work / RECONSTRUCTIONS, request.out / RECONSTRUCTIONS)
    steps = sorted((request.out / RECONSTRUCTIONS).glob("*.png"))
    newest = request.out / "pictures/reconstructions.png"
    shutil.copy(steps[-1], newest)
    return [newest, *steps]


def _snapshot(
    request: StageRequest[object],
    recipe: Pretraining,
    watch: Callable[[Method, int], None] | None,
    method: Method,
    step: int,
) -> None:
    """Measure the encoder; keep what the method predicts, for the analysis and as pictures.

    In `work`, as what is in `out` is lost when the run is killed and goes on.
    """
    if watch is not None:
        watch(method, step)
    if not isinstance(method, Reconstructing):
        return
    assert isinstance(recipe, MaskedPretraining)  # as the protocol has it
    dataset, count = request.inputs["dataset"], recipe.held_out_images
    write_held_out(method, dataset, count, request.work / HELD_OUT_FOLDER, step)
    picture = request.work / RECONSTRUCTIONS / f"step-{step:06d}.png"
    save_image_grid(picture, picture_reconstructions(method, dataset))


def _watch(
    request: StageRequest[object],
    recipe: Pretraining,
    plan: WatchPlan,
    images: PackedDataset,
    method: Method,
    step: int,
) -> None:
    """Measure the encoder where it is planned, and say what is wrong with it.

    To the journal: what an attempt that was killed has measured stands as far as it is resumed.
    """
    if step not in plan.steps:
        return
    values = measure(method, recipe, images, plan)
    if not values:
        return
    losses = effective_points(request.work / "journal").get("pretrain/loss", [])
    fall = watched.loss_fall([(at, loss) for at, loss, _ in losses])
    request.journal.metrics(step, values | ({} if fall is None else {watched.LOSS_FALL: fall}))
    if step:
        found = final_watched(effective_points(request.work / "journal"))
        for sign in watched.find_signs(found):
            logger.warning("pretrain %s, step %d: %s", request.key, step, sign)


def final_watched(points: Points) -> dict[str, float]:
    """Return the last value of each curve of `watched`, and accuracies of the untrained encoder."""
    curves = {name: values for name, values in points.items() if name.startswith(watched.PREFIX)}
    last = {name: values[-1][1] for name, values in curves.items()}
    first = {
        name + watched.UNTRAINED: curves[name][0][1]
        for name in watched.ACCURACIES
        if name in curves and curves[name][0][0] == 0
    }
    return last | first


def _initialise(request: StageRequest[object], recipe: Pretraining, method: Method) -> None:
    """Give a method the weights that its recipe names, before its first step."""
    wanted = recipe.initialise
    if wanted is None or (request.rehearsal is not None and START not in request.inputs):
        return  # a trial takes as long with other weights
    place = request.inputs[START]
    if wanted.whole:
        file = place / WEIGHTS
        begin_with_all(method, read_all(file), file)
    else:
        begin_with_encoder(method, read_encoder(place, wanted.sha256), place)
    logger.info("pretrain %s: begins with the weights of %s", request.key, place)


def _take_over(request: StageRequest[object], recipe: ImportedRecipe) -> dict[str, float]:
    """Copy an imported encoder to where a trained one would be."""
    folder = request.outputs["encoder"]
    encoder = encoder_adopter()(request.inputs["imported"], recipe, folder)
    if (folder / ORIGIN_FILE).exists():
        shutil.copy(folder / ORIGIN_FILE, request.out / ORIGIN_FILE)
        request.journal.artifact(ORIGIN_FILE)
    return {"encoder_parameters_m": _count_millions(encoder)}


def _draw(recipe: UntrainedRecipe, folder: Path) -> dict[str, float]:
    """Put a random encoder where a trained one would be."""
    encoder = encoder_drawer()(recipe)
    save_encoder(folder, encoder.state_dict(), recipe.model, encoder.parts)
    return {"encoder_parameters_m": _count_millions(encoder)}


def final_losses(journal: Path) -> dict[str, float]:
    """Return the last logged value of every loss, named as its curve: `pretrain/loss`."""
    last = last_losses(effective_points(journal))
    return {name: value for name, (_, value, _) in last.items()}


def _count_millions(module: torch.nn.Module) -> float:
    """Parameters in millions, fixed positions excepted."""
    return sum(p.numel() for n, p in module.named_parameters() if n != "pos_embed") / 1e6
