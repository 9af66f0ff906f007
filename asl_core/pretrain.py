"""Pre-training: a method, a dataset and the loop."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from asl_core import distributed
from asl_core.data.loaders import evaluation_batches
from asl_core.data.pretraining import collate_views, pretrain_transform
from asl_core.data.shards import PackedDataset
from asl_core.data.views import (
    collate_labelled,
    denormalise,
    evaluation_transform,
    normalise,
)
from asl_core.engine.context import RunContext
from asl_core.engine.device_loading import device_loader
from asl_core.engine.devices import autocast, move, pick_device
from asl_core.engine.forward_batch import refuse_torn_groups
from asl_core.engine.loading import training_loader
from asl_core.engine.loop import StepLoader, fit
from asl_core.errors import InputError
from asl_core.held_out import HELD_OUT_DRAW, evaluating, snapshot_steps
from asl_core.methods import method_class
from asl_core.modules.reconstruction import reconstruction_pictures
from asl_core.protocol import (
    ClassifyingMethod,
    Grouped,
    Method,
    ReconstructingMethod,
    RunLength,
    Scheduled,
    Tokenizer,
    Views,
)
from asl_core.randomness import derive_seed, seeded_globals
from asl_core.recipes.optimisation import Resources
from asl_core.recipes.pretraining import MaskedPretraining, Pretraining
from asl_core.recipes.tokenized import TokenPretraining
from asl_core.recipes.tokenizers import require_tokenizer
from asl_core.tokenizers.store import has_tokenizer, load_tokenizer

_CAPTIONS = {"ori": "prediction (original)", "aug": "prediction (augmented)"}


def build_method(recipe: Pretraining, dataset: PackedDataset) -> Method:
    """Build a method with weights that depend on the recipe's seed alone.

    Raises:
        InputError: It wants classes, regions or a tokenizer that the dataset does not have.
    """
    manifest = dataset.manifest
    if recipe.view_plan().labels and not dataset.has_labels:
        raise InputError(
            f"{recipe.method} wants classes, and dataset {manifest.name} has none; "
            "choose one with labels"
        )
    if recipe.view_plan().regions and not dataset.region_scales:
        raise InputError(
            f"{recipe.method} wants regions, and dataset {manifest.name} has none; in params.yaml "
            f"give datasets.{manifest.name} regions: {{scales: [500, 1000, 1500]}}, or for small "
            "images smaller ones, in pixels, and prepare it again"
        )
    more: dict[str, Any] = {**recipe.head(dataset.num_classes)}
    tokenizer = find_tokenizer(recipe, dataset.folder)
    if tokenizer is not None:
        more["tokenizer"] = tokenizer
    with seeded_globals(derive_seed(recipe.seed, "init")):
        kind = method_class(recipe.method)
        return kind(recipe, manifest.mean, manifest.std, **more)


def find_tokenizer(recipe: Pretraining, dataset_folder: Path) -> Tokenizer | None:
    """Return the tokenizer of a dataset for a method that predicts codes; None for the others.

    Raises:
        InputError: The dataset has none, or one of another kind or for other patches.
    """
    if not isinstance(recipe, TokenPretraining):
        return None
    tokenizer = load_tokenizer(dataset_folder) if has_tokenizer(dataset_folder) else None
    try:
        require_tokenizer(recipe, tokenizer)
    except ValueError as error:
        raise InputError(str(error)) from None
    return tokenizer


def pretrain(
    recipe: Pretraining,
    dataset_folder: Path,
    context: RunContext,
    *,
    at_snapshot: Callable[[Method, int], None] | None = None,
    at_start: Callable[[Method], None] | None = None,
    initialise: Callable[[Method], None] | None = None,
) -> Method:
    """Pre-train on the training split and return the method.

    Args:
        recipe: Method, sizes, rates.
        dataset_folder: The packed dataset.
        context: What surrounds the run.
        at_snapshot: Called by the first process with the method and the step, at the recipe's
            snapshots and at the end; those of an attempt that was killed are not repeated.
        at_start: Called by the first process before the first step, with the untrained method.
        initialise: Gives the method weights to begin with, in place; not called where a run goes
            on from a checkpoint. Absent: those it is built with.

    Raises:
        InputError: The dataset is missing, smaller than one batch, or has no test images; or the
            method compares the images of a step, and they do not go through the network together;
            or they are to be kept on the device, and differ in size or are too many.
    """
    _check_forward_batch(recipe, context)
    dataset = PackedDataset(dataset_folder, "train", regions=recipe.view_plan().regions > 0)
    PackedDataset(dataset_folder, "test")  # refused now and not at the first picture
    method = build_method(recipe, dataset)
    loader = _loader(recipe, dataset, context.resources)
    at_steps: dict[int, Callable[[], None]] = {}
    if at_snapshot is not None:
        for step in snapshot_steps(loader.total_steps, recipe.snapshots):
            at_steps[step] = partial(at_snapshot, method, step)
    if at_start is not None:
        at_steps[0] = partial(at_start, method)
    groups = _introduced(method, RunLength(loader.steps_per_epoch, loader.total_steps))
    begin = None if initialise is None else partial(initialise, method)
    fit(
        method, loader, recipe, context, param_groups=groups, at_steps=at_steps, initialise=begin
    )  # fmt: skip
    return method


@torch.no_grad()
def own_accuracy(
    method: ClassifyingMethod, recipe: Pretraining, dataset_folder: Path, resources: Resources
) -> float:
    """Return the share of the test split that the method itself classifies rightly, in percent.

    For a method that is trained with classes: what the paper gives where others are fine-tuned. In
    this process alone.
    """
    dataset = PackedDataset(dataset_folder, "test")
    device = pick_device(resources)
    method.to(device).eval()
    batches = evaluation_batches(
        dataset,
        evaluation_transform(recipe.model.image_size),
        collate_labelled,
        batch_size=256,
        num_workers=resources.num_workers,
    )
    right = 0
    for batch in batches:
        images = normalise(move(batch.images, device), dataset.manifest.mean, dataset.manifest.std)
        with autocast(device, recipe.precision):
            logits = method.logits(images)
        right += int((logits.argmax(1).cpu() == batch.labels).sum())
    return 100.0 * right / len(dataset)


@torch.no_grad()
def picture_reconstructions(
    method: ReconstructingMethod, dataset_folder: Path, count: int = 8
) -> dict[str, Tensor]:
    """Return reconstructions of test images, spread over the split, masked always alike, by name.

    Leaves the method and the global random numbers as they are.

    Shape:
        - Outputs: (count, 3, H, W), float in [0, 1]: input, masked input, predictions.
    """
    recipe = method.recipe
    assert isinstance(recipe, MaskedPretraining)  # that of all that reconstruct
    dataset = PackedDataset(dataset_folder, "test")
    transform = evaluation_transform(recipe.model.image_size)
    count = min(count, len(dataset))
    chosen = [i * len(dataset) // count for i in range(count)]
    images = collate_labelled([transform(dataset[i]) for i in chosen]).images
    device = next(method.parameters()).device
    with evaluating(method), seeded_globals(0):
        views = move(Views((images,), torch.arange(count)), device)
        images, mask = method.masked(views, HELD_OUT_DRAW)
        preds = method.predictions(images, mask)
    named = {
        _CAPTIONS[branch] if len(preds) > 1 else "prediction": preds[branch] for branch in preds
    }
    pictures = reconstruction_pictures(
        images, named, mask, recipe.model.patch_size, recipe.norm_pix
    )
    return {name: denormalise(x, method.mean, method.std).cpu() for name, x in pictures.items()}


def picture_views(recipe: Pretraining, dataset_folder: Path, count: int = 8) -> dict[str, Tensor]:
    """Return what the method sees of some training images, grey where patches are removed.

    Shape:
        - Outputs: (count, 3, s, s), float in [0, 1], by the view's number and size.
    """
    plan = recipe.view_plan()
    dataset = PackedDataset(dataset_folder, "train", regions=plan.regions > 0)
    count = min(count, len(dataset))
    transform = pretrain_transform(plan, dataset.manifest.mean, dataset.manifest.std)
    with seeded_globals(derive_seed(recipe.seed, "pictures")):
        batch = collate_views([transform(dataset[i * len(dataset) // count]) for i in range(count)])
    pictures, number = {}, 0
    for i, (view, images) in enumerate(zip(plan.views, batch.views, strict=True)):
        pixels = images / 255
        if view.mask is not None and batch.masks is not None:
            grid = view.mask.grid_size
            removed = batch.masks[:, number].reshape(-1, 1, grid, grid).float()
            cells = F.interpolate(removed, size=pixels.shape[-2:])  # nearest
            pixels, number = torch.where(cells > 0, 0.5, pixels), number + 1
        pictures[f"view {i + 1}, {view.size} px"] = pixels
    return pictures


def _loader(recipe: Pretraining, dataset: PackedDataset, resources: Resources) -> StepLoader[Views]:
    plan = recipe.view_plan()
    if recipe.images_on == "device":
        return device_loader(dataset, plan, recipe, resources)
    transform = pretrain_transform(plan, dataset.manifest.mean, dataset.manifest.std)
    return training_loader(dataset, transform, collate_views, recipe, resources)


def _introduced(method: object, length: RunLength) -> list[dict[str, Any]] | None:
    """Tell a method how long its run is, and return the parameter groups that it wants."""
    if isinstance(method, Scheduled):
        method.set_run_length(length)
    return method.parameter_groups() if isinstance(method, Grouped) else None


def _check_forward_batch(recipe: Pretraining, context: RunContext) -> None:
    """Refuse to compare images in parts, and to tear pairs apart."""
    micro, share = context.resources.micro_batch_size, recipe.batch_size // distributed.world_size()
    if recipe.couples_images and micro is not None and micro < share:
        raise InputError(
            f"{recipe.method} compares all images of a step: micro_batch_size {micro} in "
            f"cluster.yaml would split the {share} of a process; remove it, or take more processes"
        )
    refuse_torn_groups(recipe.method, recipe.batch_size, micro, recipe.forward_multiple)
