"""DINO against its equations, and its schedules against their tables."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from crops import encode_crop, head, products, soft_cross_entropy
from equations import (
    MEAN,
    STD,
    TINY,
    Parity,
    Weights,
    below,
    compare_gradients,
    randomised,
    weights_of,
)
from torch import Tensor, nn

from asl_core.engine.clipping import clip_per_tensor
from asl_core.engine.optimizer import build_optimizer, build_schedules, no_decay_groups
from asl_core.losses.distillation import cls_distillation
from asl_core.methods.dino import SelfDistillation
from asl_core.modules.drop_path import draw_drop_path
from asl_core.modules.positions import interpolate_positions
from asl_core.protocol import Draw, RunLength, Views
from asl_core.recipes.dino import DinoRecipe

COMMON: dict[str, Any] = {
    "dataset": "none", "model": TINY, "epochs": 4, "warmup_epochs": 0, "batch_size": 4,
    "out_dim": 7, "head_hidden_dim": 10, "head_bottleneck_dim": 5, "local_crops": 2,
    "local_size": 8, "precision": "fp32",
}  # fmt: skip


def crops(batch: int = 2, locals_: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    shapes = [(2 * batch, 3, 12, 12), (locals_ * batch, 3, 8, 8)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def dino_loss(
    p: Weights, crops: list[Tensor], kept: list[Tensor | None], center: Tensor, temp: float
) -> tuple[Tensor, Tensor]:
    """The loss, and the teacher's outputs of the global crops."""
    logits, raw = [], []
    for images, keep in zip(crops, kept, strict=True):
        for i, image in enumerate(images):
            own = None if keep is None else keep[:, :, i]
            cls = encode_crop(below(p, "encoder."), image, own)[0]
            logits.append(products(below(p, "prototypes."), head(below(p, "head."), cls)))
    for image in crops[0]:
        cls = encode_crop(below(p, "teacher.encoder."), image)[0]
        mapped = head(below(p, "teacher.head."), cls)
        raw.append(products(below(p, "teacher.prototypes."), mapped).detach())
    batch = len(crops[0]) // 2
    losses = []
    for q in range(2):
        for v in range(len(logits) // batch):
            if v == q:
                continue
            pairs = []
            for i in range(batch):
                shifted = torch.exp((raw[q * batch + i] - center[0]) / temp)
                target = shifted / shifted.sum()
                pairs.append(soft_cross_entropy(logits[v * batch + i], target, 0.1))
            losses.append(torch.stack(pairs).mean())
    return torch.stack(losses).mean(), torch.stack(raw)


def build(**fields: Any) -> Any:
    method = randomised(SelfDistillation(DinoRecipe(**COMMON, **fields), MEAN, STD))
    with torch.no_grad():
        noise = torch.randn(1, 7, generator=torch.Generator().manual_seed(5))
        method.center.add_(0.1 * noise)
    return method


@pytest.mark.parametrize("fixed", [True, False], ids=["fixed lengths", "learnt lengths"])
def test_dino_equals_its_equations_and_so_do_teacher_and_centre(
    fixed: bool, parity: Parity
) -> None:
    method = build(norm_last_layer=fixed, teacher_momentum=0.9)
    kept: list[Tensor | None] = [
        torch.rand(2, 2, n, generator=torch.Generator().manual_seed(n)).double() * 2 for n in (4, 4)
    ]
    step = method.step(crops(), kept, torch.tensor(0.06, dtype=torch.float64))
    theirs, raw = dino_loss(weights_of(method), crops(), kept, method.center, 0.06)
    compare_gradients("DINO", method, step.loss, theirs, parity)
    center = 0.9 * method.center + 0.1 * raw.mean(0, keepdim=True)
    method.take_statistics(step.statistics)
    parity("DINO, centre", method.center, center, 1e-12)
    method.set_run_length(RunLength(5, 20))
    before = {n: q.clone() for n, q in method.teacher.named_parameters()}
    method.after_step(8)
    momentum = 1 - 0.1 * (1 + math.cos(math.pi * 7 / 20)) / 2
    for name, old in before.items():
        follows = momentum * old + (1 - momentum) * method.get_parameter(name)
        after = method.teacher.get_parameter(name)
        parity("DINO, teacher after one step", after, follows.detach(), 1e-12)


def test_two_global_crops_are_enough(parity: Parity) -> None:
    method = build()
    pair = crops()[:1]
    ours = method.step(pair, [None], torch.tensor(0.04, dtype=torch.float64)).loss
    theirs, _ = dino_loss(weights_of(method), pair, [None], method.center, 0.04)
    parity("DINO, without local crops", ours, theirs, 1e-10)


def test_uniform_outputs_cost_the_logarithm_of_the_prototypes() -> None:
    even = torch.zeros(3, 11)
    loss = cls_distillation([even, even], [even.softmax(-1)] * 2, 0.1)
    torch.testing.assert_close(loss, torch.tensor(11.0).log())


def test_frozen_prototypes_stay_and_start_late() -> None:
    method = build(freeze_last_layer=1)
    method.set_run_length(RunLength(2, 8))
    optimizer = build_optimizer(no_decay_groups(method, method.recipe), method.recipe)
    before = method.prototypes.direction.detach().clone()
    for step in range(3):
        method.step(crops(), [None, None], torch.tensor(0.04)).loss.backward()
        method.edit_gradients(step)
        optimizer.step()
        optimizer.zero_grad()
        frozen = torch.equal(method.prototypes.direction, before)
        state = optimizer.state.get(method.prototypes.direction, {})
        assert (frozen, bool(state)) == ((True, False) if step < 2 else (False, True))
    assert state["step"] == 1


def test_each_gradient_is_cut_to_its_own_length() -> None:
    generator = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.zeros(n)) for n in (3, 5, 4)]
    grads = [scale * torch.randn(len(p), generator=generator)
             for scale, p in zip((0.01, 1.0, 30.0), parameters, strict=True)]  # fmt: skip
    for parameter, grad in zip(parameters, grads, strict=True):
        parameter.grad = grad.clone()
    largest = clip_per_tensor([*parameters, nn.Parameter(torch.zeros(2))], 0.3)
    torch.testing.assert_close(largest, grads[2].norm())
    for parameter, grad in zip(parameters, grads, strict=True):
        expected = grad * min(1.0, 0.3 / (grad.norm().item() + 1e-6))
        torch.testing.assert_close(parameter.grad, expected)


def test_rate_and_decay_follow_the_tables_of_the_official_code() -> None:
    def table(start: float, end: float, total: int, warmup: int = 0) -> np.ndarray:
        steps = np.arange(total - warmup)
        cosine = end + 0.5 * (start - end) * (1 + np.cos(np.pi * steps / len(steps)))
        return np.concatenate([np.linspace(0, start, warmup), cosine])

    recipe = DinoRecipe(
        **{**COMMON, "warmup_epochs": 1.0}, lr=2e-3, weight_decay=0.04, weight_decay_end=0.4
    )
    model = nn.Linear(3, 2)
    optimizer = build_optimizer(no_decay_groups(model, recipe), recipe)
    schedules = build_schedules(optimizer, recipe, steps_per_epoch=5, total_steps=20)
    rates, decays = [], []
    for step in range(20):
        for schedule in schedules:
            schedule.step_update(step)
        rates.append(optimizer.param_groups[1]["lr"])
        decays.append([group["weight_decay"] for group in optimizer.param_groups])
    np.testing.assert_allclose(rates, table(2e-3, 1e-6, 20, warmup=5), rtol=1e-12)
    np.testing.assert_allclose([b for _, b in decays], table(0.04, 0.4, 20), rtol=1e-12)
    assert {a for a, _ in decays} == {0.0}  # biases have none


def test_the_temperature_rises_as_the_table_does() -> None:
    recipe = DinoRecipe(
        **COMMON, warmup_teacher_temp=0.04, teacher_temp=0.07, warmup_teacher_temp_epochs=3
    )
    found = [recipe.temperature_at(epoch) for epoch in range(5)]
    np.testing.assert_allclose(found, [*np.linspace(0.04, 0.07, 3), 0.07, 0.07])


def test_what_is_dropped_depends_on_the_sample_and_keeps_the_mean() -> None:
    ids = torch.arange(600)
    keep = draw_drop_path(ids, Draw(0, 3), 4, 0.3, view=1)
    assert keep is not None
    assert keep.shape == (4, 2, 600)
    assert torch.equal(keep[0], torch.ones(2, 600))
    assert abs((keep[3] == 0).float().mean().item() - 0.3) < 0.04
    assert abs(keep[3].mean().item() - 1) < 0.06
    alone = draw_drop_path(ids[7:8], Draw(0, 3), 4, 0.3, view=1)
    assert alone is not None
    assert torch.equal(alone[..., 0], keep[..., 7])
    assert draw_drop_path(ids, Draw(0, 3), 4, 0.0, view=1) is None


def test_forward_is_the_step_on_what_is_prepared() -> None:
    torch.manual_seed(0)
    method = SelfDistillation(DinoRecipe(**COMMON), MEAN, STD)
    generator = torch.Generator().manual_seed(1)
    views = tuple(
        torch.randint(0, 256, (3, 3, side, side), dtype=torch.uint8, generator=generator)
        for side in (12, 12, 8, 8)
    )
    batch = Views(views, torch.arange(3))
    images, kept, _ = method.prepared(batch, Draw(0, 2))
    assert [x.shape for x in images] == [(6, 3, 12, 12), (6, 3, 8, 8)]
    assert [x is not None and x.shape for x in kept] == [(2, 2, 6)] * 2
    assert method(batch, Draw(0, 2)).loss.isfinite()
    assert method.eval().prepared(batch, Draw(0, 2))[1] == [None, None]


def test_positions_of_the_own_grid_are_untouched() -> None:
    positions = torch.randn(1, 10, 4)
    assert interpolate_positions(positions, 3) is positions


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"local_size": 2}, "one patch at least"),
        ({"local_size": 10}, "multiple of patch_size 4"),
        ({"center_momentum": 1.1}, r"center_momentum must be in \[0, 1\]"),
        ({"teacher_temp": 0.0}, "teacher_temp must be positive"),
        ({"local_crops": -1}, "local_crops must be at least 0"),
        ({"drop_path": 1.0}, "drop_path must be in"),
        ({"global_scale": (0.5, 0.2)}, r"global_scale must be \[low, high\]"),
    ],
)
def test_values_that_make_no_sense_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DinoRecipe(**{**COMMON, **fields})
