"""Pre-train an encoder."""

import dataclasses
import shutil
from pathlib import Path

import safetensors.torch
import torch

from asl_core import distributed
from asl_core.analysis.cost import measure_cost
from asl_core.engine.devices import pick_device
from asl_core.engine.loop import RunContext
from asl_core.engine.records import effective_points
from asl_core.held_out import HELD_OUT_FOLDER
from asl_core.methods.imported import ORIGIN_FILE, adopt_encoder
from asl_core.modules.encoder import save_encoder
from asl_core.pretrain import picture_reconstructions, pretrain
from asl_core.recipes.imported import ImportedRecipe
from pipeline.stages.pictures import save_image_grid
from pipeline.stages.request import StageRequest


def run(request: StageRequest) -> dict[str, float]:
    """Train the method; write encoder, whole method, predictions of test images, pictures."""
    if isinstance(request.recipe, ImportedRecipe):
        return _take_over(request)
    distributed.initialise_from_environment(pick_device(request.resources))
    context = RunContext(
        request.work / "ckpt", request.journal, request.resources, f"pretrain {request.key}",
        request.before_checkpoint,
    )  # fmt: skip
    # in `work`, as what is in `out` is lost when the run is killed and goes on
    held_out = request.work / HELD_OUT_FOLDER
    method = pretrain(request.recipe, request.inputs["dataset"], context, held_out=held_out)
    if distributed.rank() > 0:
        return {}
    shutil.copytree(held_out, request.out / HELD_OUT_FOLDER)
    save_encoder(request.out, method.encoder_state(), request.recipe.model)
    safetensors.torch.save_file(
        {name: tensor.cpu().contiguous() for name, tensor in method.state_dict().items()},
        request.out / "method.safetensors",
    )
    pictures = picture_reconstructions(method, request.inputs["dataset"])
    save_image_grid(request.out / "pictures/reconstructions.png", pictures)
    request.journal.artifact("pictures/reconstructions.png")
    return (
        final_losses(request.work / "journal")
        | {"encoder_parameters_m": _count_millions(method.encoder)}
        | dataclasses.asdict(measure_cost(request.recipe))
    )


def _take_over(request: StageRequest) -> dict[str, float]:
    """Copy an imported encoder to where a trained one would be."""
    encoder = adopt_encoder(request.inputs["imported"], request.recipe, request.out)
    if (request.out / ORIGIN_FILE).exists():
        request.journal.artifact(ORIGIN_FILE)
    return {"encoder_parameters_m": _count_millions(encoder)}


def final_losses(journal: Path) -> dict[str, float]:
    """Return the last logged value of every training loss, named `pretrain_<loss>`."""
    points = effective_points(journal)
    return {
        key.replace("train/", "pretrain_"): values[-1][1]
        for key, values in points.items()
        if key.startswith("train/loss") or key == "train/branch_distance"
    }


def _count_millions(module: torch.nn.Module) -> float:
    """Parameters in millions, fixed positions excepted."""
    return sum(p.numel() for n, p in module.named_parameters() if n != "pos_embed") / 1e6
