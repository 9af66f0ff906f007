import math

import pytest
import torch
from torch import nn

from asl_core.engine.optimizer import (
    build_optimizer,
    build_schedules,
    lars_groups,
    layer_decay_groups,
)
from asl_core.modules.encoder import Encoder, encoder_layer_matcher
from asl_core.recipes.models import Vit
from asl_core.recipes.optimisation import Optimisation
from asl_core.transfer.finetune import NO_DECAY as FINETUNE_NO_DECAY


def rates(recipe: Optimisation, steps_per_epoch: int, total: int) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=recipe.peak_lr)
    (schedule,) = build_schedules(optimizer, recipe, steps_per_epoch, total)
    seen = []
    for step in range(total):
        schedule.step_update(step)
        seen.append(optimizer.param_groups[0]["lr"])
    return seen


def test_warmup_and_half_cosine_equal_the_formula() -> None:
    recipe = Optimisation(epochs=10, warmup_epochs=2, lr=0.8, min_lr=0.1)
    expected = []
    for step in range(50):
        epoch = step / 5
        if epoch < 2:
            expected.append(0.8 * epoch / 2)
        else:
            expected.append(0.1 + 0.7 * 0.5 * (1 + math.cos(math.pi * (epoch - 2) / 8)))
    assert rates(recipe, 5, 50) == pytest.approx(expected)


def test_linear_schedule_ends_at_min_lr() -> None:
    recipe = Optimisation(epochs=4, lr=1.0, min_lr=0.0, schedule="linear")
    assert rates(recipe, 5, 20) == pytest.approx([1 - s / 20 for s in range(20)])


def test_step_schedule_drops_twice_by_ten() -> None:
    seen = rates(Optimisation(epochs=27, lr=1.0, schedule="step"), 1, 27)
    assert seen[23] == pytest.approx(1.0)
    assert seen[24] == pytest.approx(0.1)
    assert seen[26] == pytest.approx(0.01)


def test_blr_scales_with_the_batch() -> None:
    assert Optimisation(blr=1.5e-4, batch_size=4096).peak_lr == pytest.approx(2.4e-3)


class Headed(nn.Module):
    """Encoder with a head."""

    def __init__(self) -> None:
        super().__init__()
        vit = Vit(image_size=8, patch_size=4, embed_dim=8, depth=12, num_heads=2)
        self.encoder = Encoder(vit)
        self.head = nn.Linear(8, 3)

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        return encoder_layer_matcher(r"encoder\.")


def test_layer_decay_follows_mae() -> None:
    model = Headed()
    recipe = Optimisation(layer_decay=0.65, weight_decay=0.05)
    groups = layer_decay_groups(model, recipe, FINETUNE_NO_DECAY)
    scale = {id(p): g["lr_scale"] for g in groups for p in g["params"]}
    decay = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    expected = {
        "encoder.cls_token": 0, "encoder.pos_embed": 0, "encoder.patch_embed.proj.weight": 0,
        "encoder.blocks.0.mlp.fc1.weight": 1, "encoder.blocks.11.norm1.bias": 12,
        "encoder.norm.weight": 13, "head.weight": 13,
    }  # fmt: skip
    for name, layer in expected.items():
        parameter = model.get_parameter(name)
        assert scale[id(parameter)] == pytest.approx(0.65 ** (13 - layer)), name
        spared = parameter.ndim <= 1 or name in ("encoder.cls_token", "encoder.pos_embed")
        assert decay[id(parameter)] == (0.0 if spared else 0.05), name


def test_lars_step_equals_mae_rule() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4, 3)
    recipe = Optimisation(optimizer="lars", lr=6.4, weight_decay=0.0)
    optimizer = build_optimizer(lars_groups(layer), recipe)
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    velocity_w, velocity_b = torch.zeros_like(weight), torch.zeros_like(bias)
    for _ in range(3):
        layer.weight.grad, layer.bias.grad = torch.randn(3, 4), torch.randn(3)
        scaled = layer.weight.grad * 0.001 * weight.norm() / layer.weight.grad.norm()
        velocity_w = 0.9 * velocity_w + scaled
        velocity_b = 0.9 * velocity_b + layer.bias.grad
        weight, bias = weight - 6.4 * velocity_w, bias - 6.4 * velocity_b
        optimizer.step()
    torch.testing.assert_close(layer.weight.detach(), weight)
    torch.testing.assert_close(layer.bias.detach(), bias)
