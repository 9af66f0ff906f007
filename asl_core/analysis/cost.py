"""What an image costs a method: multiply-adds, parameters, memory for activations."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from asl_core.engine.devices import autocast
from asl_core.methods import method_class
from asl_core.protocol import Draw, ModuleLike, Tokenizer, Trainable, Views
from asl_core.recipes.pretraining import Pretraining

_GREY = (0.5, 0.5, 0.5)  # mean and std of an image that nobody looks at
_COUNTED = 2  # images at least where a method normalises over them


@dataclass(frozen=True)
class Flops:
    """Multiply-adds per image, in 1e9: what the field calls GFLOPs.

    Attributes:
        forward_g: The forward pass of a training step, every branch and pass that it makes.
        train_g: With its backward pass.
    """

    forward_g: float
    train_g: float


@dataclass(frozen=True)
class Cost:
    """Cost of one image in one training step, under the names that the metrics have.

    Attributes:
        flops_forward_g, flops_train_g: See `Flops`.
        parameters_m: Trained parameters in 1e6; fixed positions are none.
        activation_mib_per_image: See `activation_mib_per_image`.
    """

    flops_forward_g: float
    flops_train_g: float
    parameters_m: float
    activation_mib_per_image: float


def measure_cost(
    recipe: Pretraining, num_classes: int | None = None, tokenizer: Tokenizer | None = None
) -> Cost:
    """Measure what training by a recipe costs; the same wherever and however it is trained.

    Args:
        recipe: Method and sizes.
        num_classes: Of its dataset; of no matter to a method without labels.
        tokenizer: Of its dataset, for a method that predicts codes; its work counts.
    """
    flops = count_flops(recipe, num_classes, tokenizer)
    method = method_class(recipe.method)(
        recipe, _GREY, _GREY, **recipe.head(num_classes), **_given(tokenizer)
    )
    return Cost(
        flops_forward_g=flops.forward_g,
        flops_train_g=flops.train_g,
        parameters_m=trained_parameters_m(method),
        activation_mib_per_image=activation_mib_per_image(method, recipe),
    )


def count_flops(
    recipe: Pretraining, num_classes: int | None = None, tokenizer: Tokenizer | None = None
) -> Flops:
    """Count the multiply-adds of a training step by shapes alone, without weights or memory.

    Attention is counted as its two matrix products: of the fused kernels, torch's counter does not
    know the CPU's, and counts on a GPU what the backward pass computes a second time.
    """
    given = _given(None if tokenizer is None else copy.deepcopy(tokenizer).to(torch.device("meta")))
    with torch.device("meta"):
        method = method_class(recipe.method)(
            recipe, _GREY, _GREY, **recipe.head(num_classes), **given
        )
        batch = _images(recipe, _COUNTED)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            loss = method(batch, Draw(0, 0)).loss
            forward = counter.get_total_flops()
            loss.backward()
            total = counter.get_total_flops()
    per_image = 2e9 * _COUNTED  # torch counts a multiply-add as two
    return Flops(forward / per_image, total / per_image)


def _given(tokenizer: Tokenizer | None) -> dict[str, Tokenizer]:
    """Return what a method is built with beside its recipe and the number of classes."""
    return {} if tokenizer is None else {"tokenizer": tokenizer}


def trained_parameters_m(method: ModuleLike) -> float:
    """Return the number of trained parameters in 1e6."""
    return sum(p.numel() for p in method.parameters() if p.requires_grad) / 1e6


def activation_mib_per_image(method: Trainable[Views], recipe: Pretraining) -> float:
    """Measure how much one more image makes the forward pass keep for the backward pass, in MiB.

    Half the difference between batches of four and of two: parameters, and whatever else is kept
    once for a batch, do not count. With the kernels of the CPU, whose attention keeps no matrix of
    weights, as a GPU's does not.

    Args:
        method: On the CPU, in training mode, not compiled.
        recipe: Of which images it is made for, and in which precision.
    """
    two, four = (_saved_bytes(method, recipe, size) for size in (2, 4))
    return (four - two) / 2 / 2**20


def _saved_bytes(method: Trainable[Views], recipe: Pretraining, batch_size: int) -> int:
    """Return the bytes of all storages that a forward pass saves, each counted once."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        # what the graph holds stays alive until all is counted, so that no address comes twice
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # the tensor itself, if it is an output, would keep its graph alive

    batch = _images(recipe, batch_size)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        with autocast(torch.device("cpu"), recipe.precision):
            loss = method(batch, Draw(0, 0)).loss
        assert loss.requires_grad  # and is alive here
    return sum(storages.values())


def _images(recipe: Pretraining, count: int) -> Views:
    """Return black views with all that their plan has, on the default device."""
    plan = recipe.view_plan()
    sizes = [(count, 3, view.size, view.size) for view in plan.views]
    masked = [view.mask for view in plan.views if view.mask is not None]
    return Views(
        tuple(torch.zeros(size, dtype=torch.uint8) for size in sizes),
        torch.arange(count),
        boxes=torch.ones(count, len(sizes), 6) if plan.boxes else None,
        masks=torch.zeros(count, len(masked), masked[0].grid_size ** 2, dtype=torch.bool)
        if masked
        else None,
        labels=torch.zeros(count, dtype=torch.int64) if plan.labels else None,
        regions=torch.zeros(count, plan.regions, *sizes[0][2:], dtype=torch.bool)
        if plan.regions
        else None,
    )
