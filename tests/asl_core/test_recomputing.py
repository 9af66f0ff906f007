"""Activations that are computed again: the same bits with less memory."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from miniatures import ASL, MAE, OTHERS
from torch import Tensor, nn

from asl_core.data.pretraining import collate_views, pretrain_transform
from asl_core.data.shards import PackedDataset
from asl_core.engine.recomputing import recompute_activations
from asl_core.pretrain import build_method
from asl_core.protocol import Draw
from asl_core.randomness import seeded_globals
from asl_core.recipes.pretraining import Pretraining


def step(method: nn.Module, recipe: Pretraining, dataset: PackedDataset) -> tuple[Tensor, int]:
    """Do one step and return its loss and the bytes that were kept for the gradients."""
    transform = pretrain_transform(recipe.view_plan())
    with seeded_globals(1):
        batch = collate_views([transform(dataset[i]) for i in range(8)])
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with seeded_globals(2), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = method(batch, Draw(3, 0)).loss
        total = sum(kept.values())
        loss.backward()
    return loss.detach(), total


@pytest.mark.parametrize("name", ["mae", "asl", "sim", "dino"])
def test_gradients_are_the_same_to_the_bit(name: str, icons: Path) -> None:
    recipe = {"mae": MAE, "asl": ASL, **OTHERS}[name]
    dataset = PackedDataset(icons, "train")
    build: Callable[[], nn.Module] = lambda: build_method(recipe, dataset)  # type: ignore[return-value]  # noqa: E731
    plain, again = build(), build()
    recompute_activations(again)
    loss, whole = step(plain, recipe, dataset)
    other, part = step(again, recipe, dataset)
    assert torch.equal(loss, other)
    gradients = {n: p.grad for n, p in plain.named_parameters() if p.grad is not None}
    assert len(gradients) > 20
    for parameter_name, parameter in again.named_parameters():
        if parameter_name in gradients:
            assert parameter.grad is not None
            assert torch.equal(parameter.grad, gradients[parameter_name]), parameter_name
    assert part < 0.6 * whole
